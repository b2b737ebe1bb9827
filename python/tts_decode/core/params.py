"""Sampling parameters, and the counter-based random numbers that branches draw with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from inspect import iscoroutinefunction
from typing import Any

import numpy as np
import numpy.typing as npt

from tts_kernels.checks import any_integer, integer, number, shown

from .constraints.grammars import constraint_data, constraint_of
from .constraints.protocol import Constraint
from .stop_when import StopWhen, stop_when_name, stop_when_of

MOST_BIAS = 100.0  # added to or subtracted from a token's logit
MOST_PENALTY = 2.0  # frequency and presence penalty, positive or negative

_MASK = (1 << 64) - 1
_TOKEN_IDS = ("stop_token_ids", "suppress_token_ids")


@dataclass(frozen=True)
class SamplingParams:
    """How a branch draws tokens, and where its steps and its text end.

    The settings act in the order of vLLM and `transformers`: logit bias, repetition penalty, frequency and
    presence penalty, suppressed tokens and the constraint, temperature, top-k, top-p, min-p. Tokens tied at
    the cut of top-k or min-p are all kept, and count for top-p; among tokens tied at the cut of top-p, the
    lowest ids are dropped first. Log-probabilities and entropies always describe the model's own
    distribution, whatever is set here.

    Attributes:
        temperature: 0 takes the most probable token (the lowest id among equals).
        top_k: keep the k most probable tokens; 0 keeps all.
        top_p: keep the smallest set of most probable tokens whose mass reaches `top_p`; 1 keeps all.
        min_p: keep tokens at least `min_p` times as probable as the best one; 0 keeps all.
        repetition_penalty: divides positive and multiplies negative logits of every token that the branch
            holds, including the prompt's; 1 does nothing.
        seed: any integer; seeds the branch's random numbers.
        max_tokens: tokens after the prompt before the branch is finished.
        max_step_tokens: maximum number of tokens before `step()` returns.
        stop: a string that ends a step, or several; kept as a tuple. The step ends with the token that
            completes the string, which may carry characters beyond it. A string must lie within one step;
            special tokens are included.
        stop_token_ids: tokens that end a step. End-of-sequence tokens always end the branch.
        suppress_token_ids: tokens that are never drawn; may include end-of-sequence tokens.
        frequency_penalty: -2 to 2; subtracted from a token's logit once per occurrence of the token after the
            prompt. Sampled and forced tokens both count, embeddings do not.
        presence_penalty: -2 to 2; subtracted from the logit of each token that occurs after the prompt.
        logit_bias: -100 to 100 by token id, added to the logits; a mapping or pairs, kept as pairs in
            ascending order. In practice -100 bans a token, and 100 lets hardly any other be drawn.
        top_logprobs: how many of the most probable tokens `Step.top_logprobs` lists per token.
        self_certainty: whether to compute `Step.self_certainties`.
        constraint: a rule that the text after the prompt has to match: `JSONSchema`, `Regex`, `Grammar`,
            `Choice` or another `Constraint`. The end of the sequence is drawn only where the text matches.
        stop_when: a predicate on the text after the prompt, without special tokens: whether the branch is at
            its end. It is called after each token; the step that it ends has the reason "stop_when".
            `closed_boxed` and `closed_json` are ready-made. If it raises, the step fails.
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
    self_certainty: bool = False
    constraint: Constraint | None = None
    stop_when: StopWhen | None = None

    def __post_init__(self) -> None:
        kinds = {
            "stop": "a string or a sequence of strings",
            **dict.fromkeys(_TOKEN_IDS, "a sequence of token ids"),
        }
        for name, expected in kinds.items():
            if not isinstance(value := getattr(self, name), Iterable):
                raise TypeError(f"{name}: got {type(value).__name__}, expected {expected}")
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        for i, text in enumerate(stop):
            if not isinstance(text, str) or not text:
                raise ValueError(f"stop[{i}]: got {shown(text)}, expected a text that is not empty")
        self._keep("stop", stop)
        self._keep("temperature", number("temperature", self.temperature, low=0))
        self._keep("top_p", number("top_p", self.top_p, above=0, high=1))
        self._keep("min_p", number("min_p", self.min_p, low=0, high=1))
        self._keep("repetition_penalty", number("repetition_penalty", self.repetition_penalty, above=0))
        self._keep("top_k", integer("top_k", self.top_k, 0))
        self._keep("max_tokens", integer("max_tokens", self.max_tokens, 1))
        self._keep("max_step_tokens", integer("max_step_tokens", self.max_step_tokens, 1))
        self._keep("seed", any_integer("seed", self.seed))
        for name in _TOKEN_IDS:
            ids = enumerate(getattr(self, name))
            self._keep(name, tuple(integer(f"{name}[{i}]", token, 0) for i, token in ids))
        for name in ("frequency_penalty", "presence_penalty"):
            self._keep(name, number(name, getattr(self, name), low=-MOST_PENALTY, high=MOST_PENALTY))
        self._keep("logit_bias", _pairs(self.logit_bias))
        self._keep("top_logprobs", integer("top_logprobs", self.top_logprobs, 0))
        if not isinstance(self.self_certainty, bool):
            raise TypeError(f"self_certainty: got {shown(self.self_certainty)}, expected True or False")
        if self.constraint is not None and not callable(getattr(self.constraint, "start", None)):
            raise TypeError(
                f"constraint: got {shown(self.constraint)}, expected a Constraint, such as "
                'Regex("[0-9]+"), or an object with a method start(tokenizer)'
            )
        if self.stop_when is not None:
            _check_predicate(self.stop_when)

    def _keep(self, name: str, value: Any) -> None:
        """Replaces the given value by the checked one."""
        object.__setattr__(self, name, value)

    @property
    def bias_pairs(self) -> tuple[tuple[int, float], ...]:
        """Returns `logit_bias` as it is kept: (token id, bias), ids ascending."""
        return self.logit_bias  # type: ignore[return-value]  # set so by __post_init__

    def to_dict(self) -> dict[str, Any]:
        """Returns JSON values for `from_dict`.

        Raises:
            ValueError: the constraint's class, or the function `stop_when`, is not this package's.
        """
        data = {field.name: getattr(self, field.name) for field in fields(self)}
        for name in ("stop", *_TOKEN_IDS):
            data[name] = list(data[name])
        data["logit_bias"] = [list(pair) for pair in self.bias_pairs]
        data["constraint"] = None if self.constraint is None else constraint_data(self.constraint)
        data["stop_when"] = None if self.stop_when is None else stop_when_name(self.stop_when)
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> SamplingParams:
        """Makes the parameters from the result of `to_dict`; missing ones take their defaults."""
        constraint, stop_when = data.get("constraint"), data.get("stop_when")
        made = {
            "constraint": None if constraint is None else constraint_of(constraint),
            "stop_when": None if stop_when is None else stop_when_of(stop_when),
        }
        return cls(**{**data, **made})

    def check_vocabulary(self, size: int) -> None:
        """Raises ValueError if a vocabulary of `size` lacks a listed token, or all tokens are suppressed."""
        if self.bias_pairs and (last := self.bias_pairs[-1][0]) >= size:
            raise ValueError(f"logit_bias: got token {last}, expected ids of the vocabulary, 0..{size - 1}")
        ids = self.suppress_token_ids
        if ids and max(ids) >= size:
            raise ValueError(
                f"suppress_token_ids: got {max(ids)}, expected ids of the vocabulary, 0..{size - 1}"
            )
        if len(ids) >= size and len(set(ids)) == size:
            raise ValueError(
                f"suppress_token_ids: got all {size} tokens of the vocabulary, expected fewer; leave one "
                "to draw"
            )


def _check_predicate(stop_when: Any) -> None:
    asynchronous = any(map(iscoroutinefunction, (stop_when, getattr(stop_when, "__call__", None))))  # noqa: B004
    if asynchronous or not callable(stop_when):
        what = f"the async function {stop_when!r:.80}" if asynchronous else shown(stop_when)
        raise TypeError(f"stop_when: got {what}, expected a function of a text, such as closed_boxed")


def _pairs(bias: Mapping[int, float] | Iterable[tuple[int, float]]) -> tuple[tuple[int, float], ...]:
    """Returns one bias per token, tokens ascending."""
    if isinstance(bias, str) or not isinstance(bias, Iterable):
        raise TypeError(f"logit_bias: got {shown(bias)}, expected a mapping from token ids to numbers")
    found: dict[int, float] = {}
    for pair in bias.items() if isinstance(bias, Mapping) else bias:
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise TypeError(f"logit_bias: got {shown(pair)}, expected pairs of a token id and a number")
        token = integer("a token id of logit_bias", pair[0], 0)
        if token in found:
            raise ValueError(f"logit_bias: got token {token} twice, expected one bias for each token")
        found[token] = number(f"logit_bias[{token}]", pair[1], low=-MOST_BIAS, high=MOST_BIAS)
    return tuple(sorted(found.items()))


def mix(*values: int) -> int:
    """Hashes integers to 64 bits with SplitMix64 (Steele, Lea, Flood, OOPSLA 2014), one by one."""
    state = 0
    for value in values:
        state = ((state ^ (value & _MASK)) + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state


def uniforms(seeds: Sequence[int], positions: Sequence[int]) -> list[float]:
    """Returns a uniform number in [0, 1) for the token at each position of a branch with that seed.

    They are the upper 53 bits of `mix(seed, position)`. A number depends on nothing else: a fork, a rollback
    or a replay draws the same numbers whatever else is in the batch.
    """
    state = _mixed(np.array([seed & _MASK for seed in seeds], np.uint64))
    state = _mixed(state ^ np.array(positions, np.uint64))
    numbers: list[float] = ((state >> _11) * 2.0**-53).tolist()
    return numbers


# The constants of SplitMix64 as arrays of no dimension: NumPy would convert numbers in each call.
_STEP, _FIRST, _SECOND = (
    np.array(value, np.uint64) for value in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)
_30, _27, _31, _11 = (np.array(shift, np.uint64) for shift in (30, 27, 31, 11))


def _mixed(state: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Returns one round of `mix` of each state; products wrap at 64 bits."""
    state = state + _STEP
    state = (state ^ (state >> _30)) * _FIRST
    state = (state ^ (state >> _27)) * _SECOND
    return state ^ (state >> _31)
