"""What changes the logits of single branches before a token is drawn."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..core.constraints.guide import Guide
from ..core.params import SamplingParams
from ..model.transfer import to_device


class LogitEdits:
    """Changes of one branch's logits in one step: `SamplingParams` says which, and in what order.

    Args:
        generated: the tokens after the prompt, -1 for embeddings.
        guide: where the step stands in its constraint; it is advanced by each token drawn.
        vocab: size of the vocabulary.

    Attributes:
        filters: what is left to do when they are applied.
        blocked: the reason for which the branch is finished, as no token may be drawn; None while one may.

    Raises:
        ConstraintError: the constraint needs more than its limits allow.
    """

    def __init__(
        self, params: SamplingParams, generated: Sequence[int], guide: Guide | None, vocab: int
    ) -> None:
        self.filters = replace(params, repetition_penalty=1.0, suppress_token_ids=(), logit_bias=())
        self._suppressed = list(params.suppress_token_ids)
        self._counts = Counter(token for token in generated if token >= 0)
        self._guide, self._vocab = guide, vocab
        self._forbidden: Tensor | None = None  # bool [vocab]
        self.blocked: str | None = None
        self._look_ahead()

    def take(self, token: int) -> None:
        """A token was drawn."""
        self._counts[token] += 1
        if self._guide is not None:
            self._guide.advance(token)
            self._look_ahead()

    def _look_ahead(self) -> None:
        """What the constraint forbids next."""
        if self._guide is None:
            return
        allowed = self._guide.allowed(self._vocab)
        allowed[self._suppressed] = False
        self._forbidden = torch.from_numpy(~allowed)
        if not allowed.any():
            self.blocked = "complete" if self._guide.accepts else "dead_end"

    def apply(self, scores: Tensor, params: SamplingParams, history: Sequence[int]) -> None:
        """Changes a row of logits (float32 [vocab]) in place. history: the branch's tokens, -1 for
        embeddings."""
        if params.bias_pairs:
            tokens, bias = zip(*params.bias_pairs, strict=True)
            _add(scores, tokens, bias)
        if params.repetition_penalty != 1.0:
            penalise(scores, history, params.repetition_penalty)
        frequency, presence = params.frequency_penalty, params.presence_penalty
        if (frequency or presence) and self._counts:
            taken_off = [-(count * frequency + presence) for count in self._counts.values()]
            _add(scores, list(self._counts), taken_off)
        if self._forbidden is not None:
            scores.clamp_(min=torch.finfo(scores.dtype).min)  # as `suppress`
            scores.masked_fill_(to_device(self._forbidden, scores.device), -math.inf)
        elif self._suppressed:
            suppress(scores[None], [(0, token) for token in self._suppressed])


def penalise(scores: Tensor, history: Sequence[int], penalty: float) -> None:
    """Applies the repetition penalty to a row of logits, in place."""
    seen = _on(scores, sorted(set(history) - {-1}), torch.long)
    old = scores[seen]
    new = torch.where(old < 0, old * penalty, old / penalty)
    scores[seen] = new.nan_to_num()  # an extreme penalty leaves float32: 0 / 0 stays 0


def suppress(scores: Tensor, index: Sequence[tuple[int, int]]) -> None:
    """Sets scores (float32 [rows, vocab]) to -inf, in place, and only those at (row, token): a row always
    keeps one to draw."""
    scores.clamp_(min=torch.finfo(scores.dtype).min)
    rows, tokens = _on(scores, index, torch.long).unbind(-1)
    scores.index_put_((rows, tokens), scores.new_full((), -math.inf))


def _add(scores: Tensor, tokens: Sequence[int], values: Sequence[float]) -> None:
    """tokens: each once."""
    scores[_on(scores, tokens, torch.long)] += _on(scores, values, scores.dtype)


def _on(scores: Tensor, values: Sequence[float] | Sequence[tuple[int, int]], dtype: torch.dtype) -> Tensor:
    return to_device(torch.tensor(values, dtype=dtype), scores.device)
