"""What changes the logits of single branches before a token is drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..core.constraints.guide import Guide
from ..core.params import SamplingParams
from ..model.transfer import to_device
from .token_counts import TokenCounts

Pairs = tuple[
    npt.NDArray[np.int64], npt.NDArray[np.floating[Any]]
]  # tokens, each once, and a number for each


class LogitEdits:
    """Changes of one branch's logits in one step: `SamplingParams` says which, and in what order. What a
    token changes of them is changed when it is taken, so that nothing grows with the text.

    Args:
        generated: the tokens after the prompt, -1 for embeddings.
        guide: where the step stands in its constraint; it is advanced by each token drawn.
        vocab: size of the vocabulary.

    Attributes:
        filters: what is left to do when they are applied.
        blocked: the reason for which the branch is finished, as no token may be drawn; None while one may.
        bias: what is added first.
        suppressed: tokens that are never drawn; those of `forbidden` may be others.
        forbidden: bool [vocab], what the constraint does not allow, nor `suppressed`; None: no constraint.

    Raises:
        ConstraintError: the constraint needs more than its limits allow.
    """

    def __init__(
        self, params: SamplingParams, generated: Sequence[int], guide: Guide | None, vocab: int
    ) -> None:
        self.filters = replace(params, repetition_penalty=1.0, suppress_token_ids=(), logit_bias=())
        self.suppressed = np.array(params.suppress_token_ids, np.int64)
        self.blocked: str | None = None
        self.forbidden: Tensor | None = None
        tokens, bias = zip(*params.bias_pairs, strict=True) if params.bias_pairs else ((), ())
        self.bias: Pairs = np.array(tokens, np.int64), np.array(bias, np.float64)
        self._frequency, self._presence = params.frequency_penalty, params.presence_penalty
        penalised = self._frequency or self._presence
        self._counts = TokenCounts(generated) if penalised else None
        self._guide, self._vocab = guide, vocab
        self._look_ahead()

    @property
    def taken_off(self) -> Pairs | None:
        """What the frequency and presence penalties add, after the repetition penalty."""
        if self._counts is None:
            return None
        amounts = self._counts.counts * self._frequency + self._presence
        return self._counts.ids, -amounts

    def take(self, token: int) -> None:
        """A token was drawn.

        Raises:
            ConstraintError: the constraint needs more than its limits allow; this serves no more.
        """
        if self._guide is not None:
            self._guide.advance(token)
            self._look_ahead()
        if self._counts is not None:
            self._counts.add(token)

    def _look_ahead(self) -> None:
        """What the constraint forbids next."""
        if self._guide is None:
            return
        allowed = self._guide.allowed(self._vocab)
        allowed[self.suppressed] = False
        if not allowed.any():
            self.blocked = "complete" if self._guide.accepts else "dead_end"
        self.forbidden = torch.from_numpy(np.logical_not(allowed, out=allowed))


def apply_edits(scores: Tensor, rows: Sequence[tuple[LogitEdits, npt.NDArray[np.int64], float]]) -> None:
    """Changes rows of logits (float32 [rows, vocab], contiguous) in place.

    rows: edits of each, the distinct tokens of its branch, and its repetition penalty.
    """
    edits = [edit for edit, _, _ in rows]
    _add(scores, [(row, *edit.bias) for row, edit in enumerate(edits)])
    penalise(scores, [(row, seen, penalty) for row, (_, seen, penalty) in enumerate(rows)])
    _add(scores, [(row, *pairs) for row, edit in enumerate(edits) if (pairs := edit.taken_off) is not None])
    suppress(scores, [(row, edit.suppressed) for row, edit in enumerate(edits) if edit.forbidden is None])
    for row, edit in zip(scores, edits, strict=True):
        if edit.forbidden is not None:
            row.clamp_(min=torch.finfo(scores.dtype).min)  # as `suppress`
            row.masked_fill_(to_device(edit.forbidden, scores.device), -math.inf)


def penalise(scores: Tensor, rows: Sequence[tuple[int, npt.NDArray[np.int64], float]]) -> None:
    """Applies the repetition penalty to rows of logits (float32 [rows, vocab], contiguous), in place.

    rows: number, distinct tokens and penalty of each; 1 does nothing.
    """
    for penalty in {penalty for *_, penalty in rows} - {1.0}:
        index = _index(scores, [(row, tokens) for row, tokens, own in rows if own == penalty])
        flat = scores.view(-1)
        old = flat[index]
        new = torch.where(old < 0, old * penalty, old / penalty)
        flat[index] = new.nan_to_num()  # an extreme penalty leaves float32: 0 / 0 stays 0


def suppress(scores: Tensor, rows: Sequence[tuple[int, npt.NDArray[np.int64]]]) -> None:
    """Sets logits (float32 [rows, vocab], contiguous) to -inf, in place, and only those at the tokens of
    each row: a row always keeps one to draw."""
    rows = [(row, tokens) for row, tokens in rows if len(tokens)]
    for row, _ in rows:
        scores[row].clamp_(min=torch.finfo(scores.dtype).min)
    if rows:
        scores.view(-1)[_index(scores, rows)] = -math.inf


def _add(
    scores: Tensor, rows: Sequence[tuple[int, npt.NDArray[np.int64], npt.NDArray[np.floating[Any]]]]
) -> None:
    """rows: number, tokens, each once, and what is added to each."""
    if sum(len(tokens) for _, tokens, _ in rows):
        values = torch.from_numpy(np.concatenate([values for *_, values in rows]).astype(np.float32))
        index = _index(scores, [(row, tokens) for row, tokens, _ in rows])
        scores.view(-1)[index] += to_device(values, scores.device)


def _index(scores: Tensor, rows: Sequence[tuple[int, npt.NDArray[np.int64]]]) -> Tensor:
    """int64 [n], into the flat scores."""
    vocab = scores.shape[1]
    return to_device(
        torch.from_numpy(np.concatenate([row * vocab + tokens for row, tokens in rows])), scores.device
    )
