"""KV pages that do not fit the pool: kept beside it, in host memory or a file, until they are read."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from weakref import WeakSet

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tts_kernels import KVPool, KVTree
from tts_kernels.checks import integer, shown
from tts_kernels.machine_memory import memory_bytes

_CHUNK = 32  # pages copied at once: keeps the temporary copy small


@dataclass(frozen=True)
class KVOffload:
    """Where a decoder keeps KV pages that its pool has no room for.

    Attributes:
        bytes: for pages, in addition to `kv_bytes`.
        folder: of a mapped file that is deleted with the decoder; its space is allocated at once. None: on a
            GPU, host memory; on the CPU, whose pool already is in host memory, the folder for temporary
            files.
    """

    bytes: int
    folder: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        integer("KVOffload.bytes", self.bytes, 1)
        if self.folder is not None and not isinstance(self.folder, (str, os.PathLike)):
            raise TypeError(f"KVOffload.folder: got {shown(self.folder)}, expected a path or None")


class KVHolder(Protocol):
    """A holder of KV that was computed with the model's weights.

    Attributes:
        id: of its branch in the tree.
        last_use: number of the forward that last read its KV.
    """

    id: int
    released: bool
    last_use: int

    def lose_kv(self) -> None: ...


class Offload:
    """The offloaded pages of one decoder.

    Attributes:
        moved_out, moved_in: pages offloaded and reloaded so far.
    """

    def __init__(self, tree: KVTree, pool: KVPool, places: Tensor, holders: WeakSet[KVHolder]) -> None:
        self._tree, self._pool, self._places, self._holders = tree, pool, places, holders
        self.moved_out = self.moved_in = 0

    @property
    def free_pages(self) -> int:
        return self._tree.offload_pages - self._tree.offloaded_pages

    def missing(self, branch_id: int) -> int:
        """Returns how many pages of a branch are offloaded."""
        if not self._tree.offloaded_pages:
            return 0
        return int((self._tree.block_tables([branch_id])[0] >= self._tree.num_pages).sum())

    def reload(self, branch_id: int) -> bool:
        """Reloads a branch's pages, for which there is room; returns whether there were any."""
        if not self.missing(branch_id):
            return False
        moves = self._tree.reload([branch_id])
        for places, pages in _chunks(moves):
            self._pool.write_pages(pages, self.read(places))
        self.moved_in += len(moves)
        return True

    def read(self, pages: Tensor) -> Tensor:
        """Returns uint8 [M, page_bytes] for offloaded pages [M]."""
        return self._places[pages.long() - self._tree.num_pages]

    def movable(
        self, pins: Iterable[int], coming: Sequence[int], keep: Sequence[int]
    ) -> npt.NDArray[np.int64]:
        """Returns pages of the pool that may be offloaded, those needed last first.

        Args:
            pins: pins that nobody is using, least recently used first.
            coming: branches that wait for a forward, the next one first.
            keep: branches whose pages stay.
        """
        return self._needed_last([*pins, *self._idle({*coming, *keep}), *reversed(coming)], keep)

    def offload(self, pages: npt.NDArray[np.int64]) -> int:
        """Offloads the first of these pages of the pool, as far as places are free; returns how many."""
        pages = pages[: self.free_pages]
        if len(pages):
            moves = self._tree.offload(pages)
            for chunk, places in _chunks(moves):
                self._places[places - self._tree.num_pages] = self._pool.read_pages(chunk).cpu()
            self.moved_out += len(moves)
        return len(pages)

    def reload_first(self, branch_id: int, room: int) -> int:
        """Reloads the first pages of a branch, at most `room`; returns how many.

        Their places are then free for what has to be offloaded for the rest.
        """
        table = self._tree.block_tables([branch_id])[0][0]
        counts = np.cumsum(table >= self._tree.num_pages)
        for columns in range(int(np.searchsorted(counts, room, "right")), 0, -1):
            try:  # a separate prefix of that length; no prefix ends in an evicted page
                (prefix,) = self._tree.fork(branch_id, 1, at=columns * self._tree.page_size)
            except ValueError:
                continue
            try:
                self.reload(prefix)
            finally:
                self._tree.release(prefix)
            return int(counts[columns - 1])
        return 0

    def _idle(self, others: set[int]) -> list[int]:
        """Returns the branches that wait for nothing, the one whose KV was read longest ago first."""
        live = [holder for holder in self._holders if not holder.released and holder.id not in others]
        return [holder.id for holder in sorted(live, key=lambda holder: (holder.last_use, holder.id))]

    def _needed_last(self, order: Sequence[int], keep: Sequence[int]) -> npt.NDArray[np.int64]:
        """Returns pages of the pool that these hold, the last needed first, without those of `keep`.

        order: branches and pins, the last needed first. A page is needed when its first holder is. Of one
        branch's pages, the last ones, which the fewest others hold, come first.
        """
        needed = np.full(self._tree.num_pages, -1, np.int64)  # per page, its holder's index in `order`
        column = np.zeros(self._tree.num_pages, np.int64)
        for place, pages in enumerate(self._resident([*order, *keep])):
            needed[pages] = place
            column[pages] = np.arange(len(pages))
        found = np.flatnonzero((needed >= 0) & (needed < len(order)))
        return found[np.lexsort((-column[found], needed[found]))]

    def _resident(self, ids: Sequence[int]) -> Iterator[npt.NDArray[np.int32]]:
        for branch_id in ids:
            table = self._tree.block_tables([branch_id])[0][0]
            yield table[(table >= 0) & (table < self._tree.num_pages)]


def _chunks(moves: npt.NDArray[np.int32]) -> Iterator[tuple[Tensor, ...]]:
    """Yields the columns of moves [M, 2], int64, in chunks."""
    for chunk in torch.split(torch.from_numpy(moves).long(), _CHUNK):
        yield chunk[:, 0], chunk[:, 1]


def make_places(pool: KVPool, settings: KVOffload) -> Tensor:
    """Allocates uint8 [places, pool.page_bytes] for as many of the pool's pages as the settings' bytes hold.

    Raises:
        ValueError: there is not enough memory or space, or the bytes hold no page.
    """
    count, size = settings.bytes // pool.page_bytes, pool.page_bytes
    if not count:
        raise ValueError(f"KVOffload.bytes: got {settings.bytes}, expected at least one page of {size} bytes")
    if settings.folder is None and pool.k_pages.device.type != "cpu":
        if settings.bytes > memory_bytes():
            raise ValueError(
                f"KVOffload.bytes: got {settings.bytes}, more than the machine's memory of {memory_bytes()} "
                "bytes; lower it or name a folder"
            )
        memory = torch.empty(count * size, dtype=torch.uint8, pin_memory=True)
    else:
        memory = _mapped(Path(settings.folder or tempfile.gettempdir()), count * size)
    return memory.view(count, size)


def _mapped(folder: Path, size: int) -> Tensor:
    """Maps uint8 [size] of an unnamed file whose space is allocated: writing to it cannot fail later."""
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix="tts-kv-") as file:
            os.posix_fallocate(file.fileno(), 0, size)
            return torch.from_file(file.name, shared=True, size=size, dtype=torch.uint8)
    except (OSError, RuntimeError) as cause:
        raise ValueError(
            f"KVOffload.folder: {folder} does not take a file of {size} bytes: "
            f"{getattr(cause, 'strerror', cause)}; lower KVOffload.bytes, or name a folder with room"
        ) from cause
