"""The vectorised sampler: one token for each row of logits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tts_kernels import sample_tokens

from ..core.params import SamplingParams
from ..core.step import TopLogprobs
from ..model.transfer import to_device
from .logit_edits import Array, LogitEdits, changed_logits, penalised, suppress

_BLOCK = 256  # tokens summed together before the inverse CDF walks them
_TOP_P_WIDTH = 128  # most probable tokens that top-p ranks at first


class Sampled(NamedTuple):
    """One token per row.

    Log-probability and entropy (nats) describe the model's own distribution: temperature 1, before penalties
    and filters. log_sums: the log-sum-exp of the logits.
    """

    tokens: list[int]
    logprobs: list[float]
    entropies: list[float]
    log_sums: list[float]


_NONE: Array = np.empty(0, np.int64)


class Draw(NamedTuple):
    """What decides a row's draw.

    uniform: in [0, 1). seen: int64, the distinct tokens of the branch, if the repetition penalty needs them.
    edits: other changes of the logits, if any.
    """

    params: SamplingParams
    uniform: float
    seen: Array = _NONE
    edits: LogitEdits | None = None


def sample(logits: Tensor, draws: Sequence[Draw]) -> Sampled:
    """Draws one token for each row of `logits` (float32 [rows, vocab]), by its entry of `draws` alone.

    The logits are left unchanged.

    Raises:
        ValueError: a row holds NaN, +inf or no finite logit.
    """
    return (_sample_on_cpu if logits.is_cpu else _sample_on_device)(logits, draws)


def top_logprobs(logits: Tensor, count: int, log_sums: Sequence[float]) -> list[TopLogprobs]:
    """Returns the `count` most probable tokens per row; among equals the lowest ids come first.

    logits: float32 [rows, vocab]. Log-probabilities are in nats. log_sums: the rows' log-sum-exp.
    """
    vocab = logits.shape[1]
    best = logits.topk(min(count + 1, vocab), -1)
    values, ids = best.values.tolist(), best.indices.tolist()
    tops: list[TopLogprobs] = []
    for row, log_sum in enumerate(log_sums):
        pairs = list(zip(ids[row], values[row], strict=True))
        if count < vocab and pairs[-1][1] == pairs[-2][1]:  # topk does not define which of equals it takes
            cut = pairs[-1][1]
            tied = (logits[row] == cut).nonzero()[:, 0].tolist()
            pairs = [pair for pair in pairs if pair[1] > cut] + [(token, cut) for token in tied]
        pairs.sort(key=lambda pair: (-pair[1], pair[0]))
        tops.append(tuple((token, logit - log_sum) for token, logit in pairs[:count]))
    return tops


def self_certainties(logits: Tensor, log_sums: Sequence[float]) -> list[float]:
    """Returns the KL divergence of each row's distribution from the uniform one, nats.

    That is the mean over the vocabulary of -log p, minus log(vocab) (Kang et al., arXiv 2502.18581). Infinite
    if a logit is -inf. logits: float32 [rows, vocab]. log_sums: the rows' log-sum-exp.
    """
    if logits.is_cpu:  # row by row and in one thread, so that the bits do not depend on the batch
        means = [float(row.mean(dtype=np.float64)) for row in logits.numpy()]
    else:
        means = logits.double().mean(-1).tolist()
    most = math.log(logits.shape[1])
    return [log_sum - mean - most for log_sum, mean in zip(log_sums, means, strict=True)]


def _sample_on_cpu(logits: Tensor, draws: Sequence[Draw]) -> Sampled:
    """Samples with the kernel, which reads the logits in place."""
    numbers: list[tuple[float, ...]] = []
    seen: list[tuple[int, Array]] = []
    suppressed: list[tuple[int, Array]] = []
    edited: list[tuple[int, LogitEdits]] = []
    for row, (params, uniform, tokens, edits) in enumerate(draws):
        penalty = params.repetition_penalty
        if edits is not None:
            edited.append((row, edits))
            suppressed.append((row, edits.suppressed))
            penalty = 1.0  # the edits include it
        else:
            if penalty != 1.0:
                seen.append((row, tokens))
            if params.suppress_token_ids:
                suppressed.append((row, np.array(params.suppress_token_ids, np.int64)))
        numbers.append((params.temperature, params.top_k, params.top_p, params.min_p, penalty, uniform))
    changed = values = forbidden = None
    if edited:
        index, values = changed_logits(logits, edited)
        values = values.nan_to_num(0.0, 0.0, -math.inf)  # for rows that are refused below
        changed = torch.from_numpy(np.ascontiguousarray(index.T, np.int32))
        forbidden = _forbidden(edited, logits)
    chosen, (logprobs, entropies, lse) = sample_tokens(
        logits,
        torch.tensor(numbers, dtype=torch.float64),
        _row_tokens(seen),
        _row_tokens(suppressed),
        changed=changed,
        values=values,
        forbidden=forbidden,
    )
    log_sums: list[float] = lse.tolist()
    _check_finite(log_sums)
    return Sampled(chosen.tolist(), logprobs.tolist(), entropies.tolist(), log_sums)


def _row_tokens(rows: Sequence[tuple[int, Array]]) -> Tensor | None:
    """Returns int32 [n, 2] of (row, token); None if there are none."""
    count = sum(len(tokens) for _, tokens in rows)
    if not count:
        return None
    pairs = np.empty((count, 2), np.int32)
    pairs[:, 0] = np.repeat([row for row, _ in rows], [len(tokens) for _, tokens in rows])
    pairs[:, 1] = np.concatenate([tokens for _, tokens in rows])
    return torch.from_numpy(pairs)


def _forbidden(edited: Sequence[tuple[int, LogitEdits]], logits: Tensor) -> Tensor | None:
    """Returns bool [rows, vocab], what the constraints of some rows forbid; None if there are none."""
    if all(edits.forbidden is None for _, edits in edited):
        return None
    forbidden = np.zeros(tuple(logits.shape), np.bool_)
    for row, edits in edited:
        if edits.forbidden is not None:
            forbidden[row] = edits.forbidden
    return torch.from_numpy(forbidden)


def _sample_on_device(logits: Tensor, draws: Sequence[Draw]) -> Sampled:
    """Samples in torch, on any device."""
    params = [draw.params for draw in draws]
    shifted, weights, lse, entropies = _weigh(logits)
    scores, masses = shifted, weights
    edited = [(row, draw.edits) for row, draw in enumerate(draws) if draw.edits is not None]
    if edited or any(p.repetition_penalty != 1.0 or p.suppress_token_ids for p in params):
        scores = _edited(logits, draws, edited)
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
        tokens = _inverse_cdf(_filter(scores, masses, params), [draw.uniform for draw in draws])
        if any(greedy):
            tokens = torch.where(_tensor(greedy, scores, torch.bool), _argmax(scores), tokens)
    return _read(logits, tokens, lse, entropies)


def _edited(logits: Tensor, draws: Sequence[Draw], edited: Sequence[tuple[int, LogitEdits]]) -> Tensor:
    """Returns a copy of the logits with all changes that come before temperature and filters."""
    scores = logits.clone(memory_format=torch.contiguous_format)
    if edited:
        index, values = changed_logits(logits, edited)
        place = to_device(torch.from_numpy(index), logits.device)
        scores[place[0], place[1]] = values
    for row, (params, _, seen, edits) in enumerate(draws):
        if edits is not None:
            suppress(scores[row], edits.suppressed if edits.forbidden is None else edits.forbidden)
            continue
        if params.repetition_penalty != 1.0:
            tokens = to_device(torch.from_numpy(np.ascontiguousarray(seen)), logits.device)
            scores[row, tokens] = penalised(scores[row, tokens], params.repetition_penalty)
        suppress(scores[row], np.array(params.suppress_token_ids, np.int64))
    return scores


def token_logprobs(logits: Tensor, tokens: Sequence[int]) -> tuple[list[float], list[float]]:
    """Returns the log-probability of `tokens[i]` in row i (float32 [rows, vocab]), and entropies; nats."""
    if logits.is_cpu:
        params = torch.tensor([(0.0, 0.0, 1.0, 0.0, 1.0, 0.0)], dtype=torch.float64).repeat(len(tokens), 1)
        _, (logprobs, entropies, lse) = sample_tokens(logits, params, given=torch.tensor(tokens))
        _check_finite(lse.tolist())
        return logprobs.tolist(), entropies.tolist()
    _, _, lse, spread = _weigh(logits)
    return _read(logits, _tensor(tokens, logits, torch.long), lse, spread)[1:3]


def _read(logits: Tensor, tokens: Tensor, lse: Tensor, entropies: Tensor) -> Sampled:
    """Copies tokens, log-probabilities and entropies to the host: the only wait for the device."""
    logprobs = logits.gather(-1, tokens[:, None])[:, 0].double() - lse
    columns: list[list[float]] = torch.stack([tokens.double(), logprobs, entropies, lse]).tolist()
    _check_finite(columns[3])
    return Sampled([int(token) for token in columns[0]], *columns[1:])


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
    """Returns the values on the device of `like`, in its dtype or another."""
    return to_device(torch.tensor(values, dtype=dtype or like.dtype), like.device)


def _weigh(logits: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns logits minus the row's maximum, their exponentials, the row's log-sum-exp and its entropy.

    Sums run in float32, which torch adds pairwise (relative error about 1e-7); float64 would be many times
    slower.
    """
    peak = logits.amax(-1, keepdim=True)
    shifted = (logits - peak).clamp_(min=-1e30)  # -inf would give 0 * -inf in the entropy
    weights = shifted.exp()
    total = weights.sum(-1).double()
    weighted = torch.linalg.vecdot(weights, shifted).double()
    return shifted, weights, peak[:, 0].double() + total.log(), total.log() - weighted / total


def _argmax(scores: Tensor) -> Tensor:
    """Returns the first maximum of each row. Torch's argmax leaves open which of equals it takes."""
    if scores.is_cpu:
        return torch.from_numpy(scores.numpy().argmax(-1))
    vocab = scores.shape[-1]
    index = torch.arange(vocab, device=scores.device)
    return torch.where(scores == scores.amax(-1, keepdim=True), index, vocab - 1).amin(-1)


def _filter(scores: Tensor, masses: Tensor, params: Sequence[SamplingParams]) -> Tensor:
    """Returns the masses, 0 where a row's top-k, top-p or min-p leaves a token out.

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
    # A GPU ranks all at once: to learn that the best few do not suffice, the host would have to wait for it.
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
    """Returns the lowest score that top-k (0: all) and then top-p (float64 [rows]) keep, and the number kept.

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
    """Returns, per row, the first token whose cumulative weight exceeds uniform * total; int64 [rows].

    Weights accumulate in vocabulary order and in two levels, both in float64: cumulative sums over blocks of
    `_BLOCK` neighbouring tokens choose the block, and a walk inside it chooses the token. A token of weight 0
    is never taken.
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
    """Returns the first index with cumulative > target ([rows, 1]).

    If rounding left none, it is the last index that adds weight.
    """
    last = torch.searchsorted(cumulative, cumulative[:, -1:].contiguous())
    last.clamp_(max=cumulative.shape[-1] - 1)  # a row of NaN
    return torch.minimum(torch.searchsorted(cumulative, target, right=True), last)
