"""The bytes of KV pages that decoders may hold together, and the pinned prefixes that fill unused pages."""

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
    """Bytes of KV pages for several decoders; the total that they have in use never exceeds it.

    Pass one object to each as `kv_bytes`; a decoder may then grow into what the others leave unused. For
    decoders on the CPU, where the system commits memory as pages are first used. Freed pages are not returned
    to the system; the decoder keeps them for reuse.

    Attributes:
        total: the limit in bytes. resident: bytes in use now. peak: most bytes in use so far.
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
        """The number of live decoders that use it."""
        return len(self._shares)

    def _drop_pin(self) -> bool:
        """Drops the least recently used pin; returns False if there is none."""
        oldest = [next(iter(share.pins.values())) for share in self._shares if share.pins]
        if oldest:
            min(oldest, key=lambda pin: pin.last_use).release()
        return bool(oldest)


class KVShare:
    """One decoder's part of a budget.

    pins: by id, least recently used first. offload: for pages that do not fit; None: all must fit.
    """

    def __init__(
        self, budget: KVBudget, tree: KVTree, page_bytes: int, offload: Offload | None = None
    ) -> None:
        self.budget = budget
        self.tree = tree
        self.page_bytes = page_bytes
        self.offload = offload
        self.pins: dict[int, Pin] = {}
        # The event loop that serves requests that are not out of pages; None: there are none.
        self.serving: asyncio.AbstractEventLoop | None = None
        budget._shares.add(self)

    @property
    def resident(self) -> int:
        return (self.tree.num_pages - self.tree.free_pages) * self.page_bytes

    @property
    def free_pages(self) -> int:
        """Pages that the decoder can take without dropping pins."""
        free = self.tree.free_pages
        if self._shared:
            return min(free, (self.budget.total - self.budget.resident) // self.page_bytes)
        return min(free, self.budget.total // self.page_bytes - (self.tree.num_pages - free))

    @property
    def _shared(self) -> bool:
        return len(self.budget._shares) > 1

    def others_serve(self, loop: asyncio.AbstractEventLoop | None) -> bool:
        """Whether another decoder on the budget is running in this loop, which may free pages."""
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

        Pages of other branches and of pins are offloaded, those needed last first. If the budget is short, so
        are pages of decoders on it that serve nobody. Then pins are dropped, including those of other
        decoders on the budget, unless only the branches of `keep` are in the way.

        Args:
            reserved: free pages that are left to others.
            keep: branches whose pages stay.
            coming: branches that wait for a forward, the next one first.

        Returns:
            0, or how many pages the branch needs if they are not available.
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
                crowded = False  # because of the others' pins, perhaps
            if crowded or not self.budget._drop_pin():
                return needed
        return 0

    def _exchange(self, branch_id: int, pages: npt.NDArray[np.int64], reserved: int) -> bool:
        """Offloads these pages; returns whether any moved.

        If the free places do not take all, some of the branch's pages are reloaded into the free room, which
        vacates their places.
        """
        assert self.offload is not None
        moved = self.offload.offload(pages)
        if moved < len(pages):
            moved += self.offload.reload_first(branch_id, self.free_pages - reserved)
        return bool(moved)

    def _others_offload(self, pages: int) -> bool:
        """Makes an idle decoder on the budget offload to free `pages` pages; returns whether any moved."""
        for share in self.budget._shares:
            if share is not self and share.offload is not None and share.serving is None:
                movable = share.offload.movable(share.pins, (), ())
                if share.offload.offload(movable[: -(-pages * self.page_bytes // share.page_bytes)]):
                    return True
        return False

    def reload(self, branch_id: int) -> bool:
        """Reloads a branch's offloaded pages, for which there is room; returns whether there were any."""
        return self.offload is not None and self.offload.reload(branch_id)

    def pages_needed(self, branch_id: int, tokens: int) -> int:
        """Returns the most pages, offloaded and new, that a forward of a branch's `tokens` tokens takes."""
        offloaded = 0 if self.offload is None else self.offload.missing(branch_id)
        return offloaded + self.tree.pages_needed(branch_id, tokens)

    def read_pages(self, pool: KVPool, pages: npt.NDArray[np.int32]) -> Tensor:
        """Returns uint8 [M, page_bytes] in host memory, the content of resident and offloaded pages [M]."""
        rows = torch.empty((len(pages), self.page_bytes), dtype=torch.uint8)
        resident = torch.from_numpy(pages < self.tree.num_pages)
        rows[resident] = pool.read_pages(torch.from_numpy(pages)[resident]).cpu()
        if self.offload is not None:
            rows[~resident] = self.offload.read(torch.from_numpy(pages)[~resident])
        return rows

    def out_of_pages(self, branch_id: int, needed: int) -> OutOfPagesError:
        """Returns the error for a branch that needs more pages than are available."""
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
        """Drops all pins of the decoder, for example when the model's weights changed."""
        for pin in list(self.pins.values()):
            pin.release()

    def note_peak(self) -> None:
        """Updates the peak; call it after taking pages."""
        resident = self.budget.resident if self._shared else self.resident
        self.budget.peak = max(self.budget.peak, resident)

    def pin(self, branch_id: int, tokens: Sequence[int]) -> Pin:
        """Pins the first tokens of a branch, given by their ids."""
        pin = Pin(self, self.tree.pin(branch_id, len(tokens)), list(tokens))
        self._use(pin)
        return pin

    def used(self, tokens: Sequence[int]) -> None:
        """Marks pins as used when a prompt found these tokens resident: pins that share them as a prefix."""
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

    It ends with `release`, at the end of a `with` block, when its pages are needed, or when the model's
    weights change.

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
        """Whether it is still resident."""
        return self.id in self._share.pins

    def release(self) -> None:
        """Gives up the prefix; pages that nobody else holds are free at once. A second call does nothing."""
        if self._share.pins.pop(self.id, None) is not None:
            self._share.tree.unpin(self.id)

    def __enter__(self) -> Pin:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def __repr__(self) -> str:
        return f"Pin(id={self.id}, length={len(self.tokens)}, {'resident' if self.resident else 'dropped'})"
