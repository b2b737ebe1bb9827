"""A file of JSON lines that grows during a run, and from which the run continues after a crash.

The first line is a header with the file's schema and version; each later line is a record. A line ends with a
checksum of itself and of all lines before it, so that changed, lost, duplicated or moved lines are detected.
The file is locked while it is open; the lock ends with the process, however that ends.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .strict_json import loads, seal, unseal

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class RecordFile:
    """The file at `path`, created if missing.

    Args:
        path: a file in a folder that exists.
        schema, version: the content of the header.
        resume: keeps what the file holds; otherwise it is emptied. An incomplete last line, as after a crash,
            is dropped.
        error: the type of all errors raised, made from a message that names the file, the line and what to
            do.

    Attributes:
        header: None until there is one.
        records: those after it.

    Raises:
        error: the file is in use, cannot be read or written, is damaged, or has another schema or version.
    """

    def __init__(
        self, path: Path, schema: str, version: int, *, resume: bool, error: type[Exception]
    ) -> None:
        self.path = path
        self.header: dict[str, Any] | None = None
        self.records: list[dict[str, Any]] = []
        self._about = {"schema": schema, "version": version}
        self._lines = _Lines(path, self._about, error)
        self._checksum = 0
        self._end = 0  # bytes of complete lines
        try:
            self._stream = open_locked(path)
        except BlockingIOError:
            raise self._lines.fail(
                "is in use by another search; wait until that ends, or take another file"
            ) from None
        except OSError as cause:
            raise self._unusable(cause) from cause
        try:
            if resume:
                self._read()
            self._stream.truncate(self._end)
        except OSError as cause:
            self.close()
            raise self._unusable(cause) from cause
        except BaseException:
            self.close()
            raise

    def restart(self) -> None:
        """Drops the file's content."""
        self.header, self.records = None, []
        self._checksum = self._end = 0
        try:
            self._stream.truncate(0)
        except OSError as cause:
            raise self._unusable(cause) from cause

    def write(self, record: dict[str, Any]) -> None:
        """Appends a record, after the header if that is missing: all of it or, on failure, nothing."""
        header = self.header
        if header is None:
            record = header = self._about | record
        try:
            text, checksum = seal(record, self._checksum)
        except ValueError as cause:
            raise self._lines.fail(f"cannot take a record that {cause}") from cause
        line = text.encode() + b"\n"
        written = 0
        try:
            while written < len(line):
                written += os.pwrite(self._stream.fileno(), line[written:], self._end + written)
        except OSError as cause:
            with contextlib.suppress(OSError):
                self._stream.truncate(self._end)
            raise self._unusable(cause) from cause
        self.header, self._checksum = header, checksum
        self._end += len(line)

    def sync(self) -> None:
        """Returns once the lines would survive a power loss."""
        try:
            os.fsync(self._stream.fileno())
        except OSError as cause:
            raise self._unusable(cause) from cause

    def close(self) -> None:
        """Unlocks the file; a second call does nothing."""
        self._stream.close()

    def damaged(self, number: int, what: object) -> Exception:
        """Returns the error for an unusable line, numbered from 1."""
        return self._lines.damaged(number, what)

    def _read(self) -> None:
        found = self._lines.read(self._stream.readall())
        self.header, self.records = found.header, found.records
        self._checksum, self._end = found.checksum, found.end

    def _unusable(self, cause: OSError) -> Exception:
        hint = (
            "free some space and resume: what was written before is whole"
            if cause.errno in _FULL
            else "see to it, or take another file"
        )
        return self._lines.fail(f"cannot be used: {cause.strerror or cause}; {hint}")


def read_records(
    path: Path, schema: str, version: int, *, error: type[Exception]
) -> tuple[dict[str, Any], list[dict[str, Any]], Callable[[int, object], Exception]]:
    """Reads header and records of a file without locking it: another process may be writing it.

    An incomplete last line is left out. The third result makes the error for an unusable record from its line
    number, counted from 1, and the reason. Arguments and errors are those of `RecordFile`.
    """
    lines = _Lines(path, {"schema": schema, "version": version}, error)
    try:
        found = lines.read(path.read_bytes())
    except OSError as cause:
        raise lines.fail(f"cannot be read: {cause.strerror or cause}; see to it, or give another") from cause
    if found.header is None:
        raise lines.fail("has no whole header yet; wait until a search has ended")
    return found.header, found.records, lines.damaged


@dataclass
class _Found:
    """end: bytes of complete lines."""

    header: dict[str, Any] | None = None
    records: list[dict[str, Any]] = field(default_factory=list)
    checksum: int = 0
    end: int = 0


class _Lines:
    """Reads and checks the lines of a file, and words the errors about them."""

    def __init__(self, path: Path, about: dict[str, Any], error: type[Exception]) -> None:
        self._path, self._about, self._error = path, about, error

    def read(self, data: bytes) -> _Found:
        found = _Found()
        *lines, rest = data.split(b"\n")
        if not (lines or self._begins(rest)):
            raise self._foreign()
        for number, line in enumerate(lines, start=1):
            try:
                values = loads(line)
                if not isinstance(values, dict):
                    raise ValueError("is no object")
            except ValueError as cause:
                mine = number > 1 or self._begins(line)
                raise (self.damaged(number, cause) if mine else self._foreign()) from cause
            if number == 1:
                self._check_header(values)
            try:
                record, found.checksum = unseal(values, found.checksum)
            except ValueError as cause:
                raise self.damaged(number, cause) from cause
            if number == 1:
                found.header = record
            else:
                found.records.append(record)
            found.end += len(line) + 1
        return found

    def damaged(self, number: int, what: object) -> Exception:
        rest = "that line and all after it to go on from there, or the file to start anew"
        return self.fail(
            f"line {number} is damaged: it {what}; remove {'the file to start anew' if number == 1 else rest}"
        )

    def _begins(self, line: bytes) -> bool:
        """Whether a line may be a header, or what a crash left of one."""
        beginning = seal(self._about)[0].partition(',"version"')[0].encode()
        return beginning.startswith(line) or line.startswith(beginning)

    def _check_header(self, data: dict[str, Any]) -> None:
        found = {name: data.get(name) for name in self._about}
        if found != self._about:
            mine = found["schema"] == self._about["schema"]
            raise self.fail(
                f"is of {found['schema']!r:.60}, version {found['version']!r:.20}; expected "
                f"{self._about['schema']!r}, version {self._about['version']}: go on with the package that "
                f"wrote it, or {'remove it to start anew' if mine else 'take another file'}"
            )

    def _foreign(self) -> Exception:
        return self.fail(f"holds no {self._about['schema']!r}, and is left as it is; take another file")

    def fail(self, what: str) -> Exception:
        return self._error(f"{self._path}: {what}")


def open_locked(path: Path) -> io.FileIO:
    """Opens the file, created if missing, for this call alone until it is closed.

    Raises BlockingIOError if another process or call has it open this way, OSError if it is no regular file
    or cannot be opened.
    """
    file = io.FileIO(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666), "r+")
    try:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "it is not a plain file")
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        file.close()
        raise
    return file
