"""Specification of sample_tokens: the distribution that each row is drawn from."""

from __future__ import annotations

import torch
from torch import Tensor


def sample_tokens(
    logits: Tensor,
    params: Tensor,
    seen: Tensor | None = None,
    suppressed: Tensor | None = None,
    changed: Tensor | None = None,
    values: Tensor | None = None,
    forbidden: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Arguments as of the operator.

    Returns:
        probs: float64 [R, V], what a token is drawn from: the first one at which their running sum exceeds
            the row's uniform number.
        logprobs: float64 [R, V], entropies [R]: of the model's own distribution, nats.
    """
    model = logits.double().log_softmax(-1)
    scores = logits.double().clone()
    if changed is not None and values is not None:
        for (row, token), value in zip(changed.tolist(), values.tolist(), strict=True):
            scores[row, token] = value
    for row, token in [] if seen is None else seen.tolist():
        old, penalty = scores[row, token], params[row, 4]
        scores[row, token] = old * penalty if old < 0 else old / penalty
    for row, token in [] if suppressed is None else suppressed.tolist():
        scores[row, token] = -torch.inf
    if forbidden is not None:
        scores[forbidden] = -torch.inf
    probs = torch.stack([_kept(row, *param[:4].tolist()) for row, param in zip(scores, params, strict=True)])
    entropies = -(model.exp() * model.clamp(min=-1e300)).sum(-1)
    return probs, model, entropies


def _kept(scores: Tensor, temperature: float, top_k: float, top_p: float, min_p: float) -> Tensor:
    if temperature == 0:
        return torch.nn.functional.one_hot(scores.argmax(), len(scores)).double()
    scores = scores / temperature
    if 0 < top_k < len(scores):
        scores[scores < scores.sort(descending=True).values[int(top_k) - 1]] = -torch.inf
    if top_p < 1:
        ranked, order = scores.sort(stable=True)  # of equals the lowest index first
        removed = ranked.softmax(-1).cumsum(-1) <= 1 - top_p
        removed[-1] = False
        scores[order[removed]] = -torch.inf
    probs = scores.softmax(-1)
    return torch.where(probs < min_p * probs.max(), 0.0, probs) / probs[probs >= min_p * probs.max()].sum()
