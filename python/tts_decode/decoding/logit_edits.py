"""Changes to the logits of single branches before a token is drawn."""

from __future__ import annotations

import math
from collections import Counter
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
from .token_table import TokenTable

Array = npt.NDArray[Any]


class LogitEdits:
    """Changes of one branch's logits in one step, in the order given by `SamplingParams`.

    A token changes one entry when it is taken, however long the text is.

    Args:
        tokens: of the branch, -1 for embeddings. prompt_length: how many of them are the prompt.
        guide: the step's position in its constraint; each drawn token advances it.
        vocab: size of the vocabulary.

    Attributes:
        repetition_penalty: for the entries that are `seen`. filters: what remains to do after the edits.
        blocked: the reason that finishes the branch, because no token may be drawn; None while one may.
        suppressed: int64, tokens that are never drawn.
        forbidden: bool [vocab], these and what the constraint does not allow; None: no constraint.

    Raises:
        ConstraintError: the constraint needs more than its limits allow.
    """

    def __init__(
        self,
        params: SamplingParams,
        tokens: Sequence[int],
        prompt_length: int,
        guide: Guide | None,
        vocab: int,
    ) -> None:
        self.repetition_penalty = params.repetition_penalty
        self.filters = replace(params, repetition_penalty=1.0, suppress_token_ids=(), logit_bias=())
        self.suppressed = np.array(params.suppress_token_ids, np.int64)
        self.blocked: str | None = None
        self.forbidden: Array | None = None
        self._frequency, self._presence = params.frequency_penalty, params.presence_penalty
        self._repeats = params.repetition_penalty != 1.0
        self._counts = bool(self._frequency or self._presence)
        self._guide, self._vocab = guide, vocab
        bias = dict(params.bias_pairs)
        seen = tokens if self._repeats else ()
        counted = Counter(tokens[prompt_length:] if self._counts else ())
        counted.pop(-1, None)
        self._table = TokenTable([*bias, *seen, *counted])
        entries = self._table.entries
        entries["bias"][: len(bias)] = list(bias.values())
        entries["seen"] = self._repeats and np.isin(entries["token"], tokens)
        entries["count"] = [counted[token] for token in entries["token"].tolist()]
        amounts = -(entries["count"] * self._frequency + self._presence)
        entries["penalty"] = np.where(entries["count"] > 0, amounts, 0.0)
        self._look_ahead()

    @property
    def entries(self) -> Array:
        """Returns `ENTRY` [n], the tokens whose logits change."""
        return self._table.entries

    def take(self, token: int) -> None:
        """Updates the edits after a token was drawn.

        Raises:
            ConstraintError: the constraint needs more than its limits allow; this object cannot be used
                further.
        """
        if self._guide is not None:
            self._guide.advance(token)
            self._look_ahead()
        if self._repeats or self._counts:
            place = self._table.place(token)
            entries = self._table.entries
            entries["seen"][place] = self._repeats
            if self._counts:
                entries["count"][place] += 1
                count = int(entries["count"][place])
                entries["penalty"][place] = -(count * self._frequency + self._presence)

    def _look_ahead(self) -> None:
        """Computes what the constraint forbids next."""
        if self._guide is None:
            return
        allowed = self._guide.allowed(self._vocab)
        allowed[self.suppressed] = False
        if not allowed.any():
            self.blocked = "complete" if self._guide.accepts else "dead_end"
        self.forbidden = np.logical_not(allowed, out=allowed)


def changed_logits(logits: Tensor, rows: Sequence[tuple[int, LogitEdits]]) -> tuple[Array, Tensor]:
    """Applies the edits of some rows to logits (float32 [rows, vocab]), except suppressed tokens.

    Returns:
        index: int64 [2, n], row and token, rows in the given order. values: float32 [n], on the logits'
            device.
    """
    entries = np.concatenate([edits.entries for _, edits in rows])
    counts = [len(edits.entries) for _, edits in rows]
    index = np.stack([np.repeat([row for row, _ in rows], counts), entries["token"]])
    place = to_device(torch.from_numpy(index), logits.device)
    values = logits[place[0], place[1]]
    values += _sent(entries["bias"], logits)
    penalties = np.repeat([edits.repetition_penalty for _, edits in rows], counts)
    for penalty in np.unique(penalties[entries["seen"]]).tolist():
        own = _sent(np.flatnonzero(entries["seen"] & (penalties == penalty)), logits)
        values[own] = penalised(values[own], penalty)
    values += _sent(entries["penalty"], logits)
    return index, values


def penalised(logits: Tensor, penalty: float) -> Tensor:
    """Applies the repetition penalty."""
    changed = torch.where(logits < 0, logits * penalty, logits / penalty)
    return changed.nan_to_num()  # an extreme penalty overflows float32: 0 / 0 stays 0


def suppress(scores: Tensor, tokens: Array) -> None:
    """Sets the logits of these tokens in a row (float32 [vocab]) to -inf, in place.

    tokens: ids, or True in bool [vocab]. A row always keeps one token to draw.
    """
    if len(tokens):
        scores.clamp_(min=torch.finfo(scores.dtype).min)
        scores[_sent(tokens, scores)] = -math.inf


def _sent(values: Array, like: Tensor) -> Tensor:
    """Copies values to the device of another tensor."""
    return to_device(torch.from_numpy(np.ascontiguousarray(values)), like.device)
