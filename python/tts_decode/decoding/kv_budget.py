"""The bytes of KV pages that decoders may hold together, and the pinned prefixes that fill what is left."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tts_kernels import KVPool, KVTree, OutOfPagesError
from tts_kernels.checks import integer

from .offload import Offload


class KVBudget:
    """Bytes of KV pages for several decoders: what all of them have in use never exceeds it in sum.

    Hand the same object to each as `kv_bytes`; a decoder may then grow into what the others leave. For
    decoders on the CPU, where memory is taken as pages are first used. The system's memory that a page once
    took stays with its decoder when the page is free again.

    Attributes:
        total: the bytes. resident: those in use now. peak: those in use at most so far.
    """

    def __init__(self, total: int) -> None:
        self.total = integer("total", total, 1)
        self.peak = 0
        self._shares: weakref.WeakSet[KVShare] = weakref.WeakSet()
        self._uses = 0

    @property
    def resident(self) -> int:
        return sum(share.resident for share in self._shares)

    @property
    def decoders(self) -> int:
        """How many live decoders draw on it."""
        return len(self._shares)

    def _drop_pin(self) -> bool:
        """Drops the pin that was used the longest ago; False where there is none."""
        oldest = [next(iter(share.pins.values())) for share in self._shares if share.pins]
        if oldest:
            min(oldest, key=lambda pin: pin.last_use).release()
        return bool(oldest)


class KVShare:
    """What one decoder has of a budget. pins: by id, the one used the longest ago first. offload: of what
    does not fit; None: it has to."""

    def __init__(
        self, budget: KVBudget, tree: KVTree, page_bytes: int, offload: Offload | None = None
    ) -> None:
        self.budget = budget
        self.tree = tree
        self.page_bytes = page_bytes
        self.offload = offload
        self.pins: dict[int, Pin] = {}
        # The event loop in which requests are served that are not out of pages; None: there are none.
        self.serving: asyncio.AbstractEventLoop | None = None
        budget._shares.add(self)

    @property
    def resident(self) -> int:
        return (self.tree.num_pages - self.tree.free_pages) * self.page_bytes

    @property
    def free_pages(self) -> int:
        """Pages that the decoder can take, pins left alone."""
        free = self.tree.free_pages
        if self._shared:
            return min(free, (self.budget.total - self.budget.resident) // self.page_bytes)
        return min(free, self.budget.total // self.page_bytes - (self.tree.num_pages - free))

    @property
    def _shared(self) -> bool:
        return len(self.budget._shares) > 1

    def others_serve(self, loop: asyncio.AbstractEventLoop | None) -> bool:
        """Whether another decoder on the budget goes on in this loop, which may free pages."""
        return any(share.serving is loop for share in self.budget._shares if share is not self)

    def make_room(
        self,
        branch_id: int,
        tokens: int,
        reserved: int = 0,
        *,
        keep: Sequence[int] = (),
        coming: Sequence[int] = (),
    ) -> int:
        """Frees the pages that a forward of `tokens` tokens of a branch takes.

        Pages of other branches and of pins go beside the pool, those that are needed last, and where the
        budget is what lacks, those of decoders on it that serve nobody. Then pins are dropped, of other
        decoders on the budget too, unless only the branches of `keep` are in the way.

        Args:
            reserved: free pages that are left to others.
            keep: branches whose pages stay.
            coming: those that wait for a forward, the next one first.

        Returns:
            0, or how many pages the branch needs where they cannot be had.
        """
        while (needed := self.pages_needed(branch_id, tokens)) > self.free_pages - reserved:
            lacking = needed - self.free_pages + reserved
            crowded = False
            if self.offload is not None:
                movable = self.offload.movable(self.pins, coming, [*keep, branch_id])
                new = self.tree.pages_needed(branch_id, tokens)
                crowded = lacking > len(movable)
                fits = new <= self.free_pages - reserved + self.offload.free_pages
                if not crowded and fits and self._exchange(branch_id, movable[:lacking], reserved):
                    continue
            if self._shared:
                if needed <= self.tree.free_pages - reserved and self._others_offload(lacking):
                    continue
                crowded = False  # pins of the others may be
            if crowded or not self.budget._drop_pin():
                return needed
        return 0

    def _exchange(self, branch_id: int, pages: npt.NDArray[np.int64], reserved: int) -> bool:
        """Offloads these pages; where the free places do not take all, some of the branch's pages come back
        into the room that there is, and leave theirs. Whether any moved."""
        assert self.offload is not None
        moved = self.offload.offload(pages)
        if moved < len(pages):
            moved += self.offload.reload_first(branch_id, self.free_pages - reserved)
        return bool(moved)

    def _others_offload(self, pages: int) -> bool:
        """Has a decoder on the budget that serves nobody offload enough to make room for `pages` pages of
        this one. Whether any moved."""
        for share in self.budget._shares:
            if share is not self and share.offload is not None and share.serving is None:
                movable = share.offload.movable(share.pins, (), ())
                if share.offload.offload(movable[: -(-pages * self.page_bytes // share.page_bytes)]):
                    return True
        return False

    def reload(self, branch_id: int) -> bool:
        """Brings the offloaded pages of a branch back, for which there is room. Whether there were any."""
        return self.offload is not None and self.offload.reload(branch_id)

    def pages_needed(self, branch_id: int, tokens: int) -> int:
        """The most pages that a forward of `tokens` tokens of a branch takes: its offloaded and new ones."""
        offloaded = 0 if self.offload is None else self.offload.missing(branch_id)
        return offloaded + self.tree.pages_needed(branch_id, tokens)

    def read_pages(self, pool: KVPool, pages: npt.NDArray[np.int32]) -> Tensor:
        """uint8 [M, page_bytes] in the host's memory, of resident and offloaded pages [M]."""
        rows = torch.empty((len(pages), self.page_bytes), dtype=torch.uint8)
        resident = torch.from_numpy(pages < self.tree.num_pages)
        rows[resident] = pool.read_pages(torch.from_numpy(pages)[resident]).cpu()
        if self.offload is not None:
            rows[~resident] = self.offload.read(torch.from_numpy(pages)[~resident])
        return rows

    def out_of_pages(self, branch_id: int, needed: int) -> OutOfPagesError:
        """The error for a branch that needs more pages than can be had."""
        pages, size, budget = self.tree.num_pages, self.page_bytes, self.budget
        limit = f"(kv_bytes = {pages * size}): raise kv_bytes"
        if budget.decoders > 1:
            limit = (
                f"(a KVBudget of {budget.total} bytes, of which {budget.decoders} decoders hold "
                f"{budget.resident}): raise it"
            )
        if self.offload is None:
            limit += " or set kv_offload"
        elif needed - self.offload.missing(branch_id) > self.free_pages + self.offload.free_pages:
            places = self.tree.offload_pages
            limit += f" or KVOffload.bytes, of whose {places} places {self.offload.free_pages} are free"
        return OutOfPagesError(
            f"branch {branch_id} needs {needed} more KV pages ({needed * size} bytes), but "
            f"{self.free_pages} of {pages} are free {limit}, lower n, or release branches"
        )

    def drop_pins(self) -> None:
        """Drops all pins of the decoder, as when the model's weights changed."""
        for pin in list(self.pins.values()):
            pin.release()

    def note_peak(self) -> None:
        """To be called after pages were taken."""
        resident = self.budget.resident if self._shared else self.resident
        self.budget.peak = max(self.budget.peak, resident)

    def pin(self, branch_id: int, tokens: Sequence[int]) -> Pin:
        """Pins the first tokens of a branch, given by their ids."""
        pin = Pin(self, self.tree.pin(branch_id, len(tokens)), list(tokens))
        self._use(pin)
        return pin

    def used(self, tokens: Sequence[int]) -> None:
        """A prompt found these tokens resident: pins that begin with them, or that they begin with, were
        used."""
        for pin in list(self.pins.values()):
            shared = min(len(tokens), len(pin.tokens))
            if pin.tokens[:shared] == tokens[:shared]:
                self._use(pin)

    def _use(self, pin: Pin) -> None:
        self.budget._uses += 1
        pin.last_use = self.budget._uses
        self.pins.pop(pin.id, None)
        self.pins[pin.id] = pin


class Pin:
    """A prefix that stays resident without a branch; made by `TreeDecoder.pin`.

    It ends by `release`, at the end of a `with` block, when its pages are needed, or when the model's weights
    change.

    Attributes:
        tokens: ids of the prefix, -1 for embeddings.
    """

    def __init__(self, share: KVShare, pin_id: int, tokens: list[int]) -> None:
        self.id = pin_id
        self.tokens = tokens
        self.last_use = 0
        self._share = share

    @property
    def resident(self) -> bool:
        """Whether it is still there."""
        return self.id in self._share.pins

    def release(self) -> None:
        """Gives the prefix up; pages that nobody else holds are free at once. Again, it does nothing."""
        if self._share.pins.pop(self.id, None) is not None:
            self._share.tree.unpin(self.id)

    def __enter__(self) -> Pin:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def __repr__(self) -> str:
        return f"Pin(id={self.id}, length={len(self.tokens)}, {'resident' if self.resident else 'dropped'})"
