"""Draws the next tokens of steps, all in one call of the sampler."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..core.params import uniforms
from ..core.step import TopLogprobs
from .requests import Feed, Request
from .sampler import Draw, sample, self_certainties, top_logprobs
from .step_request import StepRequest


def draw_tokens(turn: Sequence[Request[Any]], batch: Sequence[Feed], fresh: Tensor | None) -> int:
    """Draws a token for each request in a step whose logits are known; returns how many were taken.

    fresh: float32 [rows, vocab], the logits of the forward of `batch`, None without a forward.
    """
    stepping = [
        request
        for request in turn
        if isinstance(request, StepRequest)
        and request.samples
        and not (request.future.done() or (request.hold is not None and request.held))
    ]
    if not stepping:
        return 0
    seeds = [request.seed for request in stepping]
    lengths = [len(request.path.tokens) for request in stepping]
    draws = [request.draw(number) for request, number in zip(stepping, uniforms(seeds, lengths), strict=True)]
    if fresh is not None and len(fresh) == len(batch) and stepping == [feed.request for feed in batch]:
        logits = fresh
    else:
        logits = torch.stack([request.logits for request in stepping])
    try:
        sampled = sample(logits, draws)
    except ValueError as error:
        _fail_unsampled(stepping, draws, logits, error)
        return 0  # the others are sampled in the next tick
    tops = _listed(stepping, logits, sampled.log_sums)
    certain = _certain(stepping, logits, sampled.log_sums)
    taken = 0
    for row, request in enumerate(stepping):
        token, logprob, entropy = sampled.tokens[row], sampled.logprobs[row], sampled.entropies[row]
        try:
            taken += request.take(token, logprob, entropy, tops.get(row), certain.get(row))
        except Exception as error:
            request.fail(error)
    return taken


def _fail_unsampled(
    stepping: list[StepRequest], draws: list[Draw], logits: Tensor, error: ValueError
) -> None:
    """Fails the requests whose own row cannot be sampled, or all if each row can.

    A tick must not repeat.
    """
    failed: list[tuple[StepRequest, ValueError]] = []
    for row, request in enumerate(stepping):
        try:
            sample(logits[row : row + 1], draws[row : row + 1])
        except ValueError as own:
            failed.append((request, own))
    for request, reason in failed or [(request, error) for request in stepping]:
        request.fail(reason)
        request.path.drop_logits()


def _listed(stepping: list[StepRequest], logits: Tensor, log_sums: list[float]) -> dict[int, TopLogprobs]:
    """Returns, by row of the logits, the most probable tokens for requests that asked for them."""
    rows: dict[int, list[int]] = {}  # rows by count, so that each group is ranked at once
    for row, request in enumerate(stepping):
        if request.params.top_logprobs:
            rows.setdefault(request.params.top_logprobs, []).append(row)
    listed: dict[int, TopLogprobs] = {}
    for count, group in rows.items():
        tops = top_logprobs(logits[group], count, [log_sums[row] for row in group])
        listed |= zip(group, tops, strict=True)
    return listed


def _certain(stepping: list[StepRequest], logits: Tensor, log_sums: list[float]) -> dict[int, float]:
    """Returns, by row of the logits, the self-certainty for requests that asked for it."""
    rows = [row for row, request in enumerate(stepping) if request.params.self_certainty]
    if not rows:
        return {}
    values = self_certainties(logits[rows], [log_sums[row] for row in rows])
    return dict(zip(rows, values, strict=True))
