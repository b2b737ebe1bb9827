"""Sampling parameters, and the counter-based random numbers that a branch draws by."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from tts_kernels.checks import integer, real

_MASK = (1 << 64) - 1
_TOKEN_IDS = ("stop_token_ids", "suppress_token_ids")


@dataclass(frozen=True)
class SamplingParams:
    """How a branch draws tokens and where its steps and its text end.

    The order is that of vLLM and `transformers`: logit bias, repetition penalty, frequency and presence
    penalty, suppressed tokens, temperature, top-k, top-p, min-p. Tokens tied at the cut of top-k or
    min-p are all kept, and count for top-p; of those tied at its own cut the lowest ids go first.
    Log-probabilities and entropies stay those of the model's own distribution, whatever is set here.

    Attributes:
        temperature: 0 takes the most probable token (the lowest id among equals).
        top_k: keep the k most probable tokens; 0 keeps all.
        top_p: keep the smallest set of most probable tokens whose mass reaches `top_p`; 1 keeps all.
        min_p: keep tokens at least `min_p` times as probable as the best one; 0 keeps all.
        repetition_penalty: divides positive and multiplies negative logits of every token that the branch
            holds, prompt included; 1 does nothing.
        seed: any integer; the branch's randomness.
        max_tokens: tokens after the prompt before the branch is finished.
        max_step_tokens: tokens before `step()` returns at the latest.
        stop: a string that ends a step, or several; kept as a tuple. The step ends with the token that
            completes the string, which may carry characters beyond it. A string is looked for within one
            step, special tokens included.
        stop_token_ids: tokens that end a step. End-of-sequence tokens always end the branch.
        suppress_token_ids: tokens that are never drawn, end-of-sequence ones too if they are among them.
        frequency_penalty: -2 to 2; taken off a token's logit once for each time that the token stands after
            the prompt. Sampled and forced tokens count alike, embeddings do not.
        presence_penalty: -2 to 2; taken off the logit of each token that stands after the prompt.
        logit_bias: -100 to 100 by token id, added to the logits; a mapping or pairs, kept as pairs in
            ascending order. -100 bans a token in practice, 100 lets hardly any other be drawn.
        top_logprobs: how many of the most probable tokens `Step.top_logprobs` lists at each token.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0
    max_tokens: int = 512
    max_step_tokens: int = 256
    stop: Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    suppress_token_ids: Sequence[int] = ()
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: Mapping[int, float] | Sequence[tuple[int, float]] = ()
    top_logprobs: int = 0

    def __post_init__(self) -> None:
        for name in ("stop", *_TOKEN_IDS):
            if not isinstance(value := getattr(self, name), Iterable):
                raise TypeError(f"{name} must be a tuple, got {type(value).__name__}")
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        object.__setattr__(self, "stop", stop)
        for name in _TOKEN_IDS:
            object.__setattr__(self, name, tuple(getattr(self, name)))
        _number("temperature", self.temperature, 0.0, math.inf)
        _number("top_p", self.top_p, 0.0, 1.0, open_low=True)
        _number("min_p", self.min_p, 0.0, 1.0)
        _number("repetition_penalty", self.repetition_penalty, 0.0, math.inf, open_low=True)
        _integer("top_k", self.top_k, 0)
        _integer("max_tokens", self.max_tokens, 1)
        _integer("max_step_tokens", self.max_step_tokens, 1)
        _integer("seed", self.seed, None)
        for text in stop:
            if not isinstance(text, str) or not text:
                raise ValueError(f"stop must hold non-empty strings, got {text!r}")
        for name in _TOKEN_IDS:
            for token in getattr(self, name):
                _integer(name, token, 0)
        for name in ("frequency_penalty", "presence_penalty"):
            object.__setattr__(self, name, _within(name, getattr(self, name), 2.0))
        object.__setattr__(self, "logit_bias", _pairs(self.logit_bias))
        object.__setattr__(self, "top_logprobs", integer("top_logprobs", self.top_logprobs, 0))

    @property
    def bias_pairs(self) -> tuple[tuple[int, float], ...]:
        """`logit_bias` as it is kept: (token id, bias), ids ascending."""
        return self.logit_bias  # type: ignore[return-value]  # set so by __post_init__

    def check_vocabulary(self, size: int) -> None:
        """ValueError where a vocabulary of `size` lacks a suppressed or biased token, or all tokens are
        suppressed."""
        if self.bias_pairs and (last := self.bias_pairs[-1][0]) >= size:
            raise ValueError(f"logit_bias: got token {last}, expected ids in 0..{size - 1}")
        ids = self.suppress_token_ids
        if ids and max(ids) >= size:
            raise ValueError(f"suppress_token_ids must lie in 0..{size - 1}, got {max(ids)}")
        if len(ids) >= size and len(set(ids)) == size:
            raise ValueError(
                f"suppress_token_ids holds all {size} tokens of the vocabulary: leave one to draw"
            )


def _within(name: str, value: float, bound: float) -> float:
    """A number of at most the bound's size."""
    if not abs(number := real(name, value)) <= bound:
        raise ValueError(f"{name}: got {value!r}, expected {-bound:g} <= {name} <= {bound:g}")
    return number


def _pairs(bias: Mapping[int, float] | Iterable[tuple[int, float]]) -> tuple[tuple[int, float], ...]:
    """A bias for each token, tokens ascending."""
    pairs = list(bias.items() if isinstance(bias, Mapping) else bias) if isinstance(bias, Iterable) else None
    if pairs is None or not all(isinstance(pair, (tuple, list)) and len(pair) == 2 for pair in pairs):
        raise TypeError(f"logit_bias: got {bias!r:.80}, expected a mapping from token ids to numbers")
    found: dict[int, float] = {}
    for token, value in pairs:
        token = integer("logit_bias: a token id", token, 0)
        if token in found:
            raise ValueError(f"logit_bias: got token {token} twice, expected one bias for each token")
        found[token] = _within(f"logit_bias[{token}]", value, 100.0)
    return tuple(sorted(found.items()))


def _number(name: str, value: float, low: float, high: float, *, open_low: bool = False) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if not (low < value if open_low else low <= value) or value > high or math.isinf(value):
        bound = f"{'(' if open_low else '['}{low:g}, {high:g}{')' if math.isinf(high) else ']'}"
        raise ValueError(f"{name} must lie in {bound}, got {value!r}")


def _integer(name: str, value: int, low: int | None) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer, got {type(value).__name__}")
    if low is not None and value < low:
        raise ValueError(f"{name} must be at least {low}, got {value}")


def mix(*values: int) -> int:
    """64-bit hash of integers: SplitMix64 (Steele, Lea, Flood, OOPSLA 2014) absorbed value by value."""
    state = 0
    for value in values:
        state = ((state ^ (value & _MASK)) + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state


def uniform(seed: int, position: int) -> float:
    """Uniform number in [0, 1) for the token at `position` of a branch with `seed`.

    It depends on nothing else: a fork, a rollback or a replay draws the same numbers whatever else is in the
    batch.
    """
    return (mix(seed, position) >> 11) * 2.0**-53
