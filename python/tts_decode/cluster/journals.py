"""Journals of searches on other machines: written there, copied line by line to the pool's machine."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import JournalError
from ..records.record_file import open_locked
from ..search import Journal


@dataclass(frozen=True)
class Piece:
    """Bytes of a journal from an offset on; the journal does not have what the copy has from there on."""

    offset: int
    data: bytes


class TailedJournal:
    """A journal in an actor's folder, and the part of it that the pool does not have yet.

    content: what the pool's copy holds. named: the copy's path, for messages.
    """

    def __init__(self, folder: Path, content: bytes, named: str) -> None:
        self._file = folder / "journal"
        self._named = named
        self._file.write_bytes(content)
        with self.named_errors():
            self.journal = Journal(self._file, resume=True)
        self._sent = _whole(self._file.read_bytes())  # bytes that the pool has
        self._told = False  # the first report says how many of the pool's bytes are complete lines

    @contextlib.contextmanager
    def named_errors(self) -> Iterator[None]:
        """Makes errors about the journal name the pool's file."""
        try:
            yield
        except JournalError as error:
            raise JournalError(str(error).replace(str(self._file), self._named)) from error

    def piece(self) -> Piece | None:
        """Returns what is new: complete lines."""
        data = self._file.read_bytes()
        offset, self._sent = self._sent, _whole(data)
        if offset == self._sent and self._told:
            return None
        self._told = True
        return Piece(offset, data[offset : self._sent])


def _whole(data: bytes) -> int:
    """Returns the number of bytes in complete lines."""
    return data.rfind(b"\n") + 1


class JournalCopy:
    """The journal on the pool's machine, locked while its search is running.

    Raises JournalError: the file is in use, or cannot be read or written; its content stays.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = open_locked(path)
        except BlockingIOError:
            raise JournalError(
                f"{path}: is in use by another search; wait until that ends, or take another file"
            ) from None
        except OSError as cause:
            raise self._unusable(cause) from cause

    def content(self) -> bytes:
        try:
            return self.path.read_bytes()
        except OSError as cause:
            raise self._unusable(cause) from cause

    def add(self, piece: Piece) -> None:
        end = piece.offset
        try:
            self._file.truncate(end)
            written = 0
            while written < len(piece.data):
                written += os.pwrite(self._file.fileno(), piece.data[written:], end + written)
        except OSError as cause:
            with contextlib.suppress(OSError):
                self._file.truncate(end)
            raise self._unusable(cause) from cause

    def close(self) -> None:
        self._file.close()

    def _unusable(self, cause: OSError) -> JournalError:
        return JournalError(
            f"{self.path}: cannot be used: {cause.strerror or cause}; see to it and resume: what was written "
            "before is whole"
        )
