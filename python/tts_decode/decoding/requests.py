"""Requests that wait for the engine: each knows the tokens it lacks and when it is done."""

from __future__ import annotations

import asyncio
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from torch import Tensor

from ..core.progress import Call, Hold
from .live_path import LivePath

T = TypeVar("T")
P = TypeVar("P", bound=LivePath)


@dataclass(slots=True)
class Feed:
    """Tokens of one request in one forward.

    tokens_end: end of its rows among the forward's tokens; they begin where the previous feed's end.
    """

    request: Request[Any]
    tokens: list[int]
    tokens_end: int = 0


class Request(ABC, Generic[T]):
    """A call that waits for the engine. `future` carries its result; `path` is set once it is admitted."""

    needs_hidden = False  # whether `fed` must be given hidden states
    layers: tuple[int, ...] = ()  # `take_layers` is given their hidden states of the last token fed
    # From this position on, the missing tokens are forced text, for which sparse attention reads every page.
    # Earlier ones, if any, read what they read when they were sampled, and are fed one by one.
    forced_from = sys.maxsize
    starts_over = False  # whether it continues if the path lost its KV
    undone_late = False  # whether it is undone even when done, if its caller was cancelled meanwhile
    call: Call | None = None  # the search's call that it belongs to
    hold: Hold | None = None  # where it stops until its search continues
    share_limit: int | None = None  # most tokens that a prompt shares; None: all resident ones
    shared = 0  # tokens that a prompt shares
    order = 0  # its place among the waiting requests
    seen = False  # by a tick
    served = False  # in the last tick that it and others waited for
    path: LivePath
    future: asyncio.Future[T]

    def __init__(self, path: LivePath | None) -> None:
        if path is not None:
            self.path = path
        self.admitted = path is not None

    @property
    def waits(self) -> bool:
        return not self.future.done()

    @property
    def held(self) -> bool:
        """Whether it stops where it is.

        It feeds no token beyond its hold. So a request that would have to feed to advance is held there,
        whatever the hold says of tokens.
        """
        if self.hold is None:
            return False
        if not self.admitted:
            return not self.hold.tokens
        return self.path.kv_length >= self.hold.resident

    @property
    def progress(self) -> Hold:
        """Where to hold the same request in another process to reach the same place."""
        if not self.admitted:
            return Hold(0, 0, 0, self.order)
        return Hold(len(self.path.tokens), self.path.kv_length, self.shared, self.order)

    def start(self) -> None:
        """Marks the path as waiting."""
        self.path.busy = True

    def begin_tick(self) -> None:
        """Called before each tick: the request may close without the model."""

    def missing(self) -> list[int]:
        """Returns the tokens to feed next; empty if the logits after the path's last token are known."""
        return self.path.tokens[self.path.kv_length :]

    def logit_rows(self, count: int) -> range:
        """Returns which of the first `count` missing tokens need logits: the path's last one and later."""
        return range(max(0, len(self.path.tokens) - 1 - self.path.kv_length), count)

    def embeds(self, position: int) -> Tensor:
        """Returns the input [hidden] of a missing token of id -1, at its position in the path."""
        return self.path.embeds[position]

    def take_layers(self, states: Tensor) -> None:
        """Called before `fed`. states: float32 [len(layers), hidden], of the last of the tokens."""

    @abstractmethod
    def fed(self, count: int, logits: Tensor, hidden: Tensor | None) -> None:
        """Called when the first `count` missing tokens are in the tree.

        logits: of `logit_rows`, float32. hidden: rows of all, float32.
        """

    def resolve(self, result: T) -> None:
        self.path.busy = False
        if not self.future.done():
            self.future.set_result(result)

    def fail(self, error: Exception) -> None:
        if not self.future.done():
            self.undo()
            self.future.set_exception(error)

    def undo(self) -> None:
        """Called when the call failed or was cancelled."""
        self.path.busy = False


class AdvanceRequest(Request[LivePath]):
    """Computes the logits after the path's last token."""

    def fed(self, count: int, logits: Tensor, hidden: Tensor | None) -> None:
        path = self.path
        path.kv_length += count
        if path.kv_length == len(path.tokens):
            path.logits = logits[-1].clone()  # not a view, which would keep the whole batch's logits
            self.resolve(path)


class LayersRequest(Request[Tensor]):
    """Computes the hidden states of the path's last token at some layers, and the logits after it.

    The states are float32 [len(layers), hidden] on the CPU.
    """

    def __init__(self, path: LivePath, layers: tuple[int, ...]) -> None:
        super().__init__(path)
        self.layers = layers
        self._states: Tensor | None = None

    def take_layers(self, states: Tensor) -> None:
        self._states = states

    def fed(self, count: int, logits: Tensor, hidden: Tensor | None) -> None:
        path = self.path
        path.kv_length += count
        if path.kv_length == len(path.tokens):
            assert self._states is not None  # `take_layers` comes first
            path.logits = logits[-1].clone()  # not a view, which would keep the whole batch's logits
            self.resolve(self._states.cpu())


class RootRequest(Request[P]):
    """Puts a prompt into the tree. Its result is the path that `make` builds once it is admitted.

    The path starts from what is resident, as far as `share_limit` allows. If the model's weights change
    meanwhile, the request starts over. Without an LM head (`needs_logits` False) no logits are computed, and
    a prompt that is wholly resident is not fed at all.

    Args:
        tokens: of the prompt, up to its first embedding: what others may share. length: of the whole prompt.
        page_size: of the tree.

    Attributes:
        page_hashes: [pages + 1], hashes of the tokens before each page.
    """

    forced_from = 0
    starts_over = True
    undone_late = True
    path: P

    def __init__(
        self,
        tokens: list[int],
        length: int,
        page_size: int,
        make: Callable[[int | None], P],
        *,
        needs_logits: bool = True,
    ) -> None:
        super().__init__(None)
        self.tokens, self.length = tokens, length
        self._page_size, self._make = page_size, make
        self.page_hashes = [0]
        for begin in range(0, len(tokens) - page_size + 1, page_size):
            self.page_hashes.append(hash((self.page_hashes[-1], *tokens[begin : begin + page_size])))
        self._needs_logits = needs_logits

    def start(self) -> None:
        """Does nothing: there is no path yet."""

    def admit(self) -> None:
        self.path = self._make(self.share_limit)
        self.shared = self.path.kv_length
        self.path.busy = True
        self.admitted = True

    def has(self, other: RootRequest[Any], page: int, tokens: list[int]) -> bool:
        """Whether this prompt equals another one up to a page, and has `tokens` in that page.

        The comparison uses hashes: on a chance collision, a prompt waits for nothing.
        """
        if page >= len(self.page_hashes) or self.page_hashes[page] != other.page_hashes[page]:
            return False
        begin = page * self._page_size
        return self.tokens[begin : begin + len(tokens)] == tokens

    def begin_tick(self) -> None:
        if self.admitted and not self.missing():
            self.resolve(self.path)

    def logit_rows(self, count: int) -> range:
        return super().logit_rows(count) if self._needs_logits else range(0)

    def fed(self, count: int, logits: Tensor, hidden: Tensor | None) -> None:
        path = self.path
        path.kv_length += count
        if path.kv_length == len(path.tokens):
            if self._needs_logits:
                path.logits = logits[-1].clone()
            self.resolve(path)

    def undo(self) -> None:
        if self.admitted and not self.path.released:
            self.path.release_kv()
