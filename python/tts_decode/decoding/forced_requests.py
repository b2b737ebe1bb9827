"""Requests that append given tokens: text, embeddings, recorded steps."""

from __future__ import annotations

import math
import sys
from typing import TypeVar

import torch
from torch import Tensor

from ..core.step import FINAL_REASONS, Step, TopLogprobs
from .live_path import LivePath
from .requests import Request
from .sampler import token_logprobs, top_logprobs

T = TypeVar("T")


class AppendRequest(Request[T]):
    """Forced tokens. The path's own token list grows only when all of them are in.

    A single token is read like a sampled one: a caller that decodes by hand forces tokens one by one.
    """

    def __init__(self, path: LivePath, tokens: list[int]) -> None:
        super().__init__(path)
        self._tokens = path.tokens + tokens
        if len(tokens) > 1:
            self.forced_from = len(path.tokens)
        self._kv_before = path.kv_length
        self._logprobs: list[float] = []
        self._entropies: list[float] = []

    def missing(self) -> list[int]:
        return self._tokens[self.path.kv_length :]

    def finish(self, logits: Tensor | None, result: T) -> None:
        """Called when all tokens are in. logits: after the last token, if they were computed."""
        path = self.path
        path.tokens = self._tokens
        path.logprobs += self._logprobs
        path.entropies += self._entropies
        path.finish_reason = None
        path.logits = logits
        self.resolve(result)

    def undo(self) -> None:
        super().undo()
        if not self.path.released and self.path.kv_length > self._kv_before:
            self.path.truncate_kv(self._kv_before)


class ExtendRequest(AppendRequest[list[float]]):
    """Forced tokens and their log-probabilities.

    Attributes:
        tops: the `top_logprobs` most probable tokens at each position, if requested.
    """

    def __init__(self, path: LivePath, tokens: list[int], top_logprobs: int = 0) -> None:
        super().__init__(path, tokens)
        self.tops: list[TopLogprobs] = []
        self._listed = top_logprobs
        if path.logits is not None:
            self._score(path.logits[None])

    def begin_tick(self) -> None:
        single = len(self._tokens) == len(self.path.tokens) + 1
        if single and self._scored == len(self._tokens):  # its logits were known: it is fed when needed
            self.finish(None, self._logprobs)

    def fed(self, count: int, logits: Tensor, hidden: Tensor | None) -> None:
        self.path.kv_length += count
        self._score(logits)
        if self.path.kv_length == len(self._tokens):
            self.finish(logits[-1].clone(), self._logprobs)

    @property
    def _scored(self) -> int:
        return len(self.path.tokens) + len(self._logprobs)

    def _score(self, logits: Tensor) -> None:
        """Takes the log-probabilities of the next forced tokens from rows of logits."""
        targets = self._tokens[self._scored : self._scored + len(logits)]
        if targets:
            logprobs, entropies = token_logprobs(logits[: len(targets)], targets)
            self._logprobs += logprobs
            self._entropies += entropies
            if self._listed:
                rows = logits[: len(targets)]
                own: list[float] = rows[torch.arange(len(targets)), targets].tolist()
                log_sums = [logit - logprob for logit, logprob in zip(own, logprobs, strict=True)]
                self.tops += top_logprobs(rows, self._listed, log_sums)


class ReadRequest(AppendRequest[Tensor]):
    """Forced tokens and the last hidden states of some of them, float32 [len(rows), hidden]; no logits.

    rows: indices into the tokens, ascending.
    """

    needs_hidden = True

    def __init__(self, path: LivePath, tokens: list[int], rows: list[int]) -> None:
        super().__init__(path, tokens)
        self.forced_from = len(path.tokens)
        self._positions = [len(path.tokens) + row for row in rows]
        self._read: list[Tensor] = []
        self._logprobs = self._entropies = [math.nan] * len(tokens)

    def logit_rows(self, count: int) -> range:
        return range(0)

    def fed(self, count: int, logits: Tensor, hidden: Tensor | None) -> None:
        assert hidden is not None  # `needs_hidden`
        begin = self.path.kv_length
        self.path.kv_length += count
        wanted = [position - begin for position in self._positions if begin <= position < begin + count]
        self._read.append(hidden[wanted])
        if self.path.kv_length == len(self._tokens):
            self.finish(None, torch.cat(self._read).cpu())


class EmbedsRequest(ReadRequest):
    """Embeddings [n, hidden] in place of tokens, and the last hidden states of all of them."""

    def __init__(self, path: LivePath, embeds: Tensor) -> None:
        super().__init__(path, [-1] * len(embeds), list(range(len(embeds))))
        self._new = dict(enumerate(embeds, start=len(path.tokens)))

    def embeds(self, position: int) -> Tensor:
        return self._new[position] if position in self._new else super().embeds(position)

    def finish(self, logits: Tensor | None, result: Tensor) -> None:
        self.path.embeds = self.path.embeds | self._new
        super().finish(logits, result)


class ReplayRequest(AppendRequest[Step]):
    """A recorded step, whose tokens are fed as when they were sampled.

    All of them are fed if their hidden states were kept, else all but the last.
    """

    def __init__(self, path: LivePath, step: Step) -> None:
        super().__init__(path, list(step.tokens))
        self.forced_from = sys.maxsize
        self._step = step
        self._logprobs, self._entropies = list(step.logprobs), list(step.entropies)
        self._end = len(self._tokens) - (step.hidden is None)

    def begin_tick(self) -> None:
        if not self.missing():
            self._close(None)

    def missing(self) -> list[int]:
        return self._tokens[self.path.kv_length : self._end]

    def logit_rows(self, count: int) -> range:
        last = len(self._tokens) - 1 - self.path.kv_length  # fed if hidden states were kept
        return range(last, count)

    def fed(self, count: int, logits: Tensor, hidden: Tensor | None) -> None:
        self.path.kv_length += count
        if not self.missing():
            self._close(logits[-1].clone() if len(logits) else None)

    def _close(self, logits: Tensor | None) -> None:
        path, step = self.path, self._step
        self.finish(logits, step)
        if step.reason in FINAL_REASONS:
            path.finish_reason = step.reason
        path.record_step(step)
        if path.budget is not None:
            path.budget.count(len(step.tokens))
