"""The actor: one decoder in its own process, and the searches that run on it in one batch.

Nothing imported here loads torch: `SearchActor` first sets the number of its threads.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import tempfile
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..core.stats import DecoderStats
    from ..decoding.branch import TreeBranch
    from ..decoding.decoder import TreeDecoder
    from ..decoding.kv_budget import Pin
    from ..search import Journal
    from .identity import Identity
    from .journals import Piece, TailedJournal
    from .work import Work


@dataclass(frozen=True)
class Finished:
    """A search that ended on an actor. rest: the part of its journal that was not reported yet."""

    value: Any = None
    error: Exception | None = None
    cancelled: bool = False
    rest: Piece | None = None


@dataclass(frozen=True)
class Report:
    """An actor's status. stats: of its decoders, the current one last. pieces: of journals, by search."""

    stats: list[DecoderStats]
    pieces: dict[int, Piece]


class SearchActor:
    """Ray calls its methods one at a time, except for those that wait."""

    def __init__(self, threads: int, pinned: int) -> None:
        # Same as in the command tts-decode: see `tts_decode.cli.main`.
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
        self._threads = threads
        self._pinned = pinned
        self._pins: deque[Pin] = deque()
        self._tasks: dict[int, asyncio.Task[Any]] = {}
        self._journals: dict[int, TailedJournal] = {}
        self._before: list[DecoderStats] = []
        self._decoder: TreeDecoder | None = None

    async def open(self, make_decoder: Callable[[], TreeDecoder]) -> Identity:
        """Makes the decoder, replacing an existing one."""
        import torch

        from .identity import identity_of
        from .totals import closed

        torch.set_num_threads(self._threads)
        if self._decoder is not None:
            self._before.append(closed(self._decoder.stats()))
        self._pins.clear()
        self._decoder = None
        self._decoder = make_decoder()
        return identity_of(self._decoder)

    async def search(self, key: int, work: Work[Any], content: bytes | None, named: str) -> Finished:
        """Runs a search to its end.

        content: of its journal, None without one. named: the journal's file, for messages.
        """
        from .journals import TailedJournal

        task = asyncio.current_task()
        assert task is not None
        self._tasks[key] = task
        tailed: TailedJournal | None = None
        try:
            with tempfile.TemporaryDirectory(prefix="tts-decode-") as folder:
                try:
                    if content is None:
                        return Finished(await work(_Host(self, None)))
                    tailed = TailedJournal(Path(folder), content, named)
                    self._journals[key] = tailed
                    with tailed.named_errors():
                        value = await work(_Host(self, tailed.journal))
                    return Finished(value, rest=tailed.piece())
                except asyncio.CancelledError:
                    return Finished(cancelled=True, rest=_rest(tailed))
                except Exception as error:
                    return Finished(error=_portable(error), rest=_rest(tailed))
                finally:
                    self._journals.pop(key, None)
                    if tailed is not None:
                        tailed.journal.close()
        finally:
            del self._tasks[key]

    async def cancel(self, key: int) -> None:
        if key in self._tasks:
            self._tasks[key].cancel()

    async def report(self, seconds: float) -> Report:
        """Returns its status, after waiting for `seconds`."""
        await asyncio.sleep(seconds)
        pieces = {
            key: piece for key, tailed in self._journals.items() if (piece := tailed.piece()) is not None
        }
        now = [] if self._decoder is None else [self._decoder.stats()]
        return Report([*self._before, *now], pieces)

    async def ask(self, question: Callable[[TreeDecoder], Any]) -> Any:
        return question(self.decoder)

    @property
    def decoder(self) -> TreeDecoder:
        if self._decoder is None:
            raise RuntimeError("the actor has no decoder: `open` was not called, or failed")
        return self._decoder

    def keep(self, root: TreeBranch) -> None:
        if not self._pinned or not self.decoder.stats().resident_bytes:
            return
        self._pins.append(self.decoder.pin(root))
        if len(self._pins) > self._pinned:
            self._pins.popleft().release()


class _Host:
    """The `Host` of one search."""

    def __init__(self, actor: SearchActor, journal: Journal | None) -> None:
        self.decoder = actor.decoder
        self.journal = journal
        self.keep = actor.keep


def _rest(tailed: TailedJournal | None) -> Piece | None:
    return None if tailed is None else tailed.piece()


def _portable(error: Exception) -> Exception:
    """Returns the error, or its text if it cannot be sent."""
    from ..errors import ClusterError

    try:
        return error if type(pickle.loads(pickle.dumps(error))) is type(error) else ClusterError(str(error))
    except Exception:
        return ClusterError(f"{type(error).__name__}: {error}")
