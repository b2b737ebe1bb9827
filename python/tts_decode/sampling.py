"""Sampling parameters and the vectorised sampler.

Randomness is counter-based: the uniform number for a token depends on the branch's seed and the token's
position only, so a fork, a rollback or a replay draws the same numbers whatever else is in the batch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from tts_decode.transfer import to_device
from tts_kernels import sample_tokens

_MASK = (1 << 64) - 1
_BLOCK = 256  # tokens summed together before the inverse CDF walks them
_TOP_P_WIDTH = 128  # most probable tokens that top-p ranks at first
_TOKEN_IDS = ("stop_token_ids", "suppress_token_ids")


@dataclass(frozen=True)
class SamplingParams:
    """How a branch draws tokens and where its steps and its text end.

    The filters have the meaning and the order of `transformers`: repetition penalty, suppressed tokens,
    temperature, top-k, top-p, min-p. Tokens tied at the cut of top-k or min-p are all kept, and count for
    top-p; of those tied at its own cut the lowest ids go first.

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
            Log-probabilities stay those of the model's own distribution.
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

    def check_vocabulary(self, size: int) -> None:
        """ValueError where a vocabulary of `size` lacks a suppressed token, or has no other."""
        ids = self.suppress_token_ids
        if ids and max(ids) >= size:
            raise ValueError(f"suppress_token_ids must lie in 0..{size - 1}, got {max(ids)}")
        if len(ids) >= size and len(set(ids)) == size:
            raise ValueError(
                f"suppress_token_ids holds all {size} tokens of the vocabulary: leave one to draw"
            )


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
    """Uniform number in [0, 1) for the token at `position` of a branch with `seed`."""
    return (mix(seed, position) >> 11) * 2.0**-53


class Sampled(NamedTuple):
    """One token a row. Log-probability and entropy (nats) are of the model's own distribution: temperature 1,
    before penalty and filters."""

    tokens: list[int]
    logprobs: list[float]
    entropies: list[float]


def sample(
    logits: Tensor,
    params: Sequence[SamplingParams],
    uniforms: Sequence[float],
    history: Sequence[Sequence[int]],
) -> Sampled:
    """Draws one token for each row of `logits` (float32 [rows, vocab], left unchanged).

    `params`, `uniforms` (in [0, 1)) and `history` (the tokens already in the branch, -1 for embeddings) have
    one entry a row. A row's draw depends on that row's entries alone.

    Raises:
        ValueError: a row holds NaN, +inf or no finite logit.
    """
    draw = _sample_on_cpu if logits.is_cpu else _sample_on_device
    return draw(logits, params, uniforms, history)


def _sample_on_cpu(
    logits: Tensor,
    params: Sequence[SamplingParams],
    uniforms: Sequence[float],
    history: Sequence[Sequence[int]],
) -> Sampled:
    """By the kernel, which reads the logits where they lie."""
    numbers = [
        (p.temperature, p.top_k, p.top_p, p.min_p, p.repetition_penalty, u)
        for p, u in zip(params, uniforms, strict=True)
    ]
    penalised = enumerate(
        set(tokens) - {-1} if p.repetition_penalty != 1.0 else ()
        for p, tokens in zip(params, history, strict=True)
    )
    tokens, (logprobs, entropies, lse) = sample_tokens(
        logits,
        torch.tensor(numbers, dtype=torch.float64),
        _pairs(penalised),
        _pairs(enumerate(p.suppress_token_ids for p in params)),
    )
    _check_finite(lse.tolist())
    return Sampled(tokens.tolist(), logprobs.tolist(), entropies.tolist())


def _pairs(tokens_of_rows: Iterable[tuple[int, Iterable[int]]]) -> Tensor | None:
    """int32 [n, 2] of (row, token)."""
    pairs = [(row, token) for row, tokens in tokens_of_rows for token in tokens]
    return torch.tensor(pairs, dtype=torch.int32) if pairs else None


def _sample_on_device(
    logits: Tensor,
    params: Sequence[SamplingParams],
    uniforms: Sequence[float],
    history: Sequence[Sequence[int]],
) -> Sampled:
    """In torch, for any device."""
    shifted, weights, lse, entropies = _weigh(logits)
    scores, masses = shifted, weights
    penalised = any(p.repetition_penalty != 1.0 for p in params)
    suppressed = any(p.suppress_token_ids for p in params)
    if penalised or suppressed:
        scores = _penalise(logits, params, history) if penalised else logits.clone()
        if suppressed:
            _suppress(scores, params)
        scores -= scores.amax(-1, keepdim=True)
        masses = scores.exp()
    greedy = [p.temperature == 0.0 for p in params]
    if all(greedy):
        tokens = _argmax(scores)
    else:
        temperatures = [p.temperature or 1.0 for p in params]
        if any(t != 1.0 for t in temperatures):
            scores = scores / _tensor(temperatures, scores)[:, None]
            masses = scores.exp()
        tokens = _inverse_cdf(_filter(scores, masses, params), uniforms)
        if any(greedy):
            tokens = torch.where(_tensor(greedy, scores, torch.bool), _argmax(scores), tokens)
    return Sampled(*_read(logits, tokens, lse, entropies))


def token_logprobs(logits: Tensor, tokens: Sequence[int]) -> tuple[list[float], list[float]]:
    """Log-probability of `tokens[i]` under row i of `logits` (float32 [rows, vocab]), and entropy; nats."""
    if logits.is_cpu:
        params = torch.tensor([(0.0, 0.0, 1.0, 0.0, 1.0, 0.0)], dtype=torch.float64).repeat(len(tokens), 1)
        _, (logprobs, entropies, lse) = sample_tokens(logits, params, given=torch.tensor(tokens))
        _check_finite(lse.tolist())
        return logprobs.tolist(), entropies.tolist()
    _, _, lse, spread = _weigh(logits)
    return _read(logits, _tensor(tokens, logits, torch.long), lse, spread)[1:]


def _read(
    logits: Tensor, tokens: Tensor, lse: Tensor, entropies: Tensor
) -> tuple[list[int], list[float], list[float]]:
    """Tokens, their log-probabilities and the entropies on the host: the one wait for the device."""
    logprobs = logits.gather(-1, tokens[:, None])[:, 0].double() - lse
    columns: list[list[float]] = torch.stack([tokens.double(), logprobs, entropies, lse]).tolist()
    _check_finite(columns[3])
    return [int(token) for token in columns[0]], columns[1], columns[2]


def _check_finite(lse: Sequence[float]) -> None:
    for row, value in enumerate(lse):
        if not math.isfinite(value):
            raise ValueError(
                f"the model's output logits hold NaN or inf in row {row}: check the weights and the dtype "
                "(bfloat16 or float32)"
            )


def _tensor(
    values: Sequence[float] | Sequence[Sequence[float]], like: Tensor, dtype: torch.dtype | None = None
) -> Tensor:
    """The values on the device of `like`, in its dtype or another."""
    return to_device(torch.tensor(values, dtype=dtype or like.dtype), like.device)


def _weigh(logits: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits less the row's maximum, their exponentials, the row's log-sum-exp and its entropy.

    Sums run in float32, which torch adds pairwise (relative error some 1e-7); asked for float64 it is many
    times slower.
    """
    peak = logits.amax(-1, keepdim=True)
    shifted = (logits - peak).clamp_(min=-1e30)  # -inf would give 0 * -inf in the entropy
    weights = shifted.exp()
    total = weights.sum(-1).double()
    weighted = torch.linalg.vecdot(weights, shifted).double()
    return shifted, weights, peak[:, 0].double() + total.log(), total.log() - weighted / total


def _argmax(scores: Tensor) -> Tensor:
    """First of the greatest in each row. Torch does not say which of equals its argmax takes; numpy does."""
    if scores.is_cpu:
        return torch.from_numpy(scores.numpy().argmax(-1))
    vocab = scores.shape[-1]
    index = torch.arange(vocab, device=scores.device)
    return torch.where(scores == scores.amax(-1, keepdim=True), index, vocab - 1).amin(-1)


def _penalise(logits: Tensor, params: Sequence[SamplingParams], history: Sequence[Sequence[int]]) -> Tensor:
    scores = logits.clone()
    for row, (param, tokens) in enumerate(zip(params, history, strict=True)):
        if param.repetition_penalty != 1.0:
            seen = _tensor(sorted(set(tokens) - {-1}), scores, torch.long)
            old = logits[row, seen]
            new = torch.where(old < 0, old * param.repetition_penalty, old / param.repetition_penalty)
            scores[row, seen] = new.nan_to_num()  # an extreme penalty leaves float32: 0 / 0 stays 0
    return scores


def _suppress(scores: Tensor, params: Sequence[SamplingParams]) -> None:
    """Sets the scores of suppressed tokens to -inf, and only theirs: a row always keeps one to draw."""
    scores.clamp_(min=torch.finfo(scores.dtype).min)
    index = [(row, token) for row, p in enumerate(params) for token in p.suppress_token_ids]
    rows, tokens = _tensor(index, scores, torch.long).unbind(-1)
    scores.index_put_((rows, tokens), scores.new_full((), -math.inf))


def _filter(scores: Tensor, masses: Tensor, params: Sequence[SamplingParams]) -> Tensor:
    """The masses, 0 where a row's top-k, top-p or min-p leaves a token out.

    `scores` have row maximum 0 and `masses` are their exponentials.
    """
    vocab = scores.shape[1]
    groups: dict[int, list[int]] = {}  # top_k (0: none) -> rows, so that each group is ranked at once
    for row, p in enumerate(params):
        if 0 < p.top_k < vocab or p.top_p < 1.0:
            groups.setdefault(p.top_k if p.top_k < vocab else 0, []).append(row)
    if not groups and all(p.min_p == 0.0 for p in params):
        return masses
    # The lowest score that stays, and how many of the tokens tied at it do not.
    floor = _tensor([math.log(p.min_p) if p.min_p else -math.inf for p in params], scores)
    dropped = torch.zeros(len(params), dtype=torch.long, device=scores.device)
    # To find that the best few do not suffice the host would wait for a GPU, which rather ranks all at once.
    width = _TOP_P_WIDTH if scores.is_cpu else vocab
    for top_k, rows in groups.items():
        top_p = _tensor([params[row].top_p for row in rows], scores, torch.float64)
        index = _tensor(rows, scores, torch.long)
        cut, kept = _ranked_cut(scores[index], masses[index], top_k, top_p, width)
        if any(params[row].top_p < 1.0 for row in rows):
            surplus = (scores[index] >= cut[:, None]).sum(-1) - kept
            dropped[index] = torch.where((top_p < 1.0) & (cut >= floor[index]), surplus, 0)
        floor[index] = torch.maximum(floor[index], cut)
    out = scores < floor[:, None]
    if any(p.top_p < 1.0 for p in params):
        tied = scores == floor[:, None]
        out |= tied & (tied.cumsum(-1, dtype=torch.int32) <= dropped[:, None])
    return masses.masked_fill(out, 0.0)


def _ranked_cut(
    scores: Tensor, masses: Tensor, top_k: int, top_p: Tensor, width: int
) -> tuple[Tensor, Tensor]:
    """Lowest score that top-k (0: all) and then top-p (float64 [rows]) keep, and the count of tokens kept.

    Without top-k only the `width` best scores are ranked at first, and more for rows that need more.
    """
    vocab = scores.shape[1]
    width = top_k or min(width, vocab)
    ranked = scores.topk(width, -1).values
    mass = ranked.double().exp()
    if top_k:
        last = ranked[:, -1:]
        ties = (scores == last).sum(-1) - (ranked == last).sum(-1)  # with the k-th token, not ranked
        total = mass.sum(-1) + ties * mass[:, -1]
    else:
        total = masses.sum(-1).double()
    needed = top_p * total
    before = mass.cumsum(-1) - mass  # of the tokens ranked above; the best has none and always stays
    kept = (before < needed[:, None]).sum(-1)
    cut = ranked.gather(-1, (kept - 1).clamp_(min=0)[:, None])[:, 0]  # none is kept of a row of NaN
    if top_k:
        more = ((needed - mass.sum(-1)) / mass[:, -1]).ceil().nan_to_num_().clamp_(min=0)
        return cut, kept + torch.minimum(more, ties).long()
    short = (mass.sum(-1) < needed).nonzero()[:, 0] if width < vocab else ()
    if len(short):
        cut[short], kept[short] = _ranked_cut(scores[short], masses[short], 0, top_p[short], 16 * width)
    return cut, kept


def _inverse_cdf(weights: Tensor, uniforms: Sequence[float]) -> Tensor:
    """First token whose cumulative weight, in vocabulary order, exceeds uniform * total; int64 [rows].

    Two levels: cumulative sums of blocks of `_BLOCK` neighbouring tokens choose the block, a walk inside it
    the token, both in float64. A token of weight 0 is never taken.
    """
    rows, vocab = weights.shape
    if vocab % _BLOCK:
        weights = torch.nn.functional.pad(weights, (0, _BLOCK - vocab % _BLOCK))
    blocks = weights.view(rows, -1, _BLOCK)
    sums = blocks.sum(-1).double()
    cumulative = sums.cumsum(-1)
    target = _tensor(uniforms, weights, torch.float64)[:, None] * cumulative[:, -1:]
    block = _first_above(cumulative, target)
    inside = blocks.gather(1, block[:, :, None].expand(-1, -1, _BLOCK))[:, 0].double().cumsum(-1)
    below = cumulative.gather(1, block) - sums.gather(1, block)
    token = block * _BLOCK + _first_above(inside, target - below)
    return token[:, 0].clamp_(max=vocab - 1)  # a row of NaN


def _first_above(cumulative: Tensor, target: Tensor) -> Tensor:
    """First index with cumulative > target ([rows, 1]); if rounding left none, the last that adds weight."""
    last = torch.searchsorted(cumulative, cumulative[:, -1:].contiguous())
    last.clamp_(max=cumulative.shape[-1] - 1)  # a row of NaN
    return torch.minimum(torch.searchsorted(cumulative, target, right=True), last)
