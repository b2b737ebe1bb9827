"""Saves the results of `search` or `compare` in a folder during the run; a crashed run resumes from it.

NAME.jsonl holds a header with the settings, then a line for each finished search (`record_file`): the output
of `problems.describe`, and under "search" the whole result (docs/results.md). Running searches keep a journal
in NAME/INDEX.journal, which is deleted when they have a result. NAME is the strategy's, with "-sparse" added
for a sparse run. If pyarrow is installed, NAME/*.parquet finally has the results of all searches. The writing
process locks FOLDER/.lock, which names it.
"""

from __future__ import annotations

import contextlib
import io
import os
import platform
from codecs import BOM_UTF8
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from datetime import datetime, timezone
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..errors import ResultFileError
from ..model.sparse import SparseConfig
from ..plots import Ended, SavedRun
from ..records.plain_data import read_as
from ..records.record_file import RecordFile, open_locked, read_records
from ..records.strict_json import dumps, loads
from ..search import Journal, SearchResult, write_parquet
from ..version import package_version
from ..view import Problem, Shown
from .errors import CommandError, UsageError
from .machine import device_name

_SCHEMA, _VERSION = "tts-decode/saved", 2


@contextlib.contextmanager
def open_folder(folder: Path | None, names: Sequence[str], *, resume: bool) -> Iterator[None]:
    """Creates the folder, if one is given, and locks out other processes.

    names: of the files to be written.

    Raises UsageError if results would be overwritten, or there is nothing to resume; CommandError if the
    folder cannot be used, or another process uses it.
    """
    if folder is None:
        if resume:
            raise UsageError("--resume: needs --save FOLDER, the folder of the interrupted run")
        yield
        return
    with _unusable(folder):
        if folder.exists() and not folder.is_dir():
            raise UsageError(f"--save: {folder} is a file, expected a folder")
        held = [name for name in names if _file(folder, name).exists()]
        if held and not resume:
            raise UsageError(
                f"--save: {folder} holds results of {held[0]} already; give --resume to go on with them, or "
                "another folder"
            )
        folder.mkdir(parents=True, exist_ok=True)
        lock = _lock(folder / ".lock")
    with lock:
        yield


def _lock(path: Path) -> io.FileIO:
    try:
        lock = open_locked(path)
    except BlockingIOError:
        with open(path, errors="replace") as file:
            holder = file.read(200).strip() or "another process"
        raise CommandError(
            f"--save: {path.parent} is in use by {holder}; wait until it ends, or give another folder"
        ) from None
    lock.truncate(0)
    lock.write(f"process {os.getpid()} on {platform.node()}\n".encode())
    return lock


@contextlib.contextmanager
def _unusable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as cause:
        raise CommandError(
            f"--save: {cause.filename or path} cannot be used: {cause.strerror}; see to it, or give another "
            "folder"
        ) from cause


def saved_name(strategy: str, sparse: SparseConfig | None) -> str:
    return strategy if sparse is None else f"{strategy}-sparse"


def _file(folder: Path, name: str) -> Path:
    return folder / f"{name}.jsonl"


class Saved:
    """The results of one strategy. `with Saved(...) as saved` keeps the file open.

    folder: from `open_folder`. count: number of problems. results: those found in the file, with the
    searches' cost in eFLOPs, by the problem's index. They exclude failed searches, which run again from their
    journals.

    Raises CommandError: the file is damaged, of another version, or was written with other settings.
    """

    def __init__(self, folder: Path, name: str, settings: Mapping[str, Any], count: int) -> None:
        self.results: dict[int, tuple[SearchResult, float]] = {}
        self._journals = folder / name
        with _unusable(self._journals):
            self._journals.mkdir(exist_ok=True)
        self._file = RecordFile(_file(folder, name), _SCHEMA, _VERSION, resume=True, error=_SaveError)
        try:
            if self._file.header is None:
                self._file.write({"settings": settings, "made": _made(settings)})
            else:
                self._check(self._file.header.get("settings"), loads(dumps(settings).encode()))
            for number, record in enumerate(self._file.records, start=2):
                try:
                    self._take_in(record, count)
                except ValueError as cause:
                    raise self._file.damaged(number, f"holds no result ({cause})") from cause
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Saved:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        self._file.close()
        if kind is None and self.results and find_spec("pyarrow"):
            try:
                write_parquet([self.results[index][0] for index in sorted(self.results)], self._journals)
            except ResultFileError as cause:
                raise CommandError(f"--save: {cause}; the results are whole in {self._file.path}") from cause

    def journal(self, index: int) -> Journal:
        return Journal(self.journal_file(index), resume=True)

    def add(self, index: int, described: dict[str, Any], result: SearchResult | None) -> None:
        """Saves a search that ended. A failed one keeps its journal, so that its work is not lost."""
        self._file.write(
            {"index": index} | described | {"search": None if result is None else result.to_dict()}
        )
        if result is not None:
            self.results[index] = result, described["eflops"]
            self._file.sync()
            with _unusable(self.journal_file(index)):
                self.journal_file(index).unlink(missing_ok=True)

    def journal_file(self, index: int) -> Path:
        return self._journals / f"{index}.journal"

    def _take_in(self, record: dict[str, Any], count: int) -> None:
        index = read_as(int, record.get("index"), "index")
        if not 0 <= index < count:
            raise ValueError(f"index: got {index}, expected 0 to {count - 1}")
        cost = read_as(float, record.get("eflops"), "eflops")
        if "search" not in record:
            raise ValueError("search: it is missing")
        if record["search"] is not None:
            self.results[index] = SearchResult.from_dict(record["search"]), cost

    def _check(self, theirs: Any, ours: dict[str, Any]) -> None:
        if not isinstance(theirs, dict):
            raise self._file.damaged(1, "has no settings")
        for key, value in ours.items():
            if theirs.get(key) != value:
                name, old, new = _first_difference(key, theirs.get(key), value)
                raise CommandError(
                    f"--resume: {self._file.path} was written with {name}={old!r:.100}, not "
                    f"{new!r:.100}; start anew in another folder"
                )


def _first_difference(name: str, old: Any, new: Any) -> tuple[str, Any, Any]:
    """Returns name and values of the first setting that differs, nested ones too: "sampling.max_tokens"."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            if old.get(key) != new.get(key):
                return _first_difference(f"{name}.{key}", old.get(key), new.get(key))
    return name, old, new


def _made(settings: Mapping[str, Any]) -> dict[str, str]:
    """Returns where and when a run began, for readers of its results only."""
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "version": package_version(),
        "machine": device_name(str(settings.get("device", "cpu"))),
    }


def holds_saved(path: Path) -> bool:
    """Whether the file is, or claims to be, one of `Saved`: the folder may hold other files."""
    try:
        with open(path, "rb") as file:
            return file.read(100).removeprefix(BOM_UTF8).startswith(f'{{"schema":"{_SCHEMA}"'.encode())
    except OSError:
        return True  # reading it will report the fault


def read_saved(path: Path) -> list[Shown]:
    """Returns the finished searches of a NAME.jsonl, by index. Only reads: a run may be writing the file.

    Raises CommandError: the file cannot be read, is damaged, or of another version.
    """
    header, records, damaged = read_records(path, _SCHEMA, _VERSION, error=CommandError)
    settings = header.get("settings")
    found: dict[int, Shown] = {}
    for number, record in enumerate(records, start=2):
        try:
            told = {field.name: record.get(field.name) for field in fields(Problem)}
            problem = read_as(Problem, told, "problem")
            search = record.get("search")
            result = None if search is None else SearchResult.from_dict(search)
        except ValueError as cause:
            raise damaged(number, f"holds no result ({cause})") from cause
        about = settings if isinstance(settings, dict) else {}
        found[problem.index] = Shown(path.stem, result, problem, about)
    return [found[index] for index in sorted(found)]


def read_run(path: Path) -> SavedRun:
    """Reads a NAME.jsonl without the searches' trees, for a plot; a run may be writing it.

    Raises CommandError: as in `read_saved`.
    """
    header, records, damaged = read_records(path, _SCHEMA, _VERSION, error=CommandError)
    found: dict[int, Ended] = {}
    for number, record in enumerate(records, start=2):
        try:
            told = {field.name: record.get(field.name) for field in fields(Ended)}
            search: Ended = read_as(Ended, told, "record")
        except ValueError as cause:
            raise damaged(number, f"holds no result ({cause})") from cause
        found[search.index] = search
    settings = header.get("settings")
    if not isinstance(settings, dict):
        raise damaged(1, "has no settings")
    try:
        for name, kind in (("model", str), ("strategy", str), ("problems", int)):
            if name in settings:
                read_as(kind, settings[name], name)
        made: dict[str, str] = read_as(dict[str, str], header.get("made", {}), "made")
    except ValueError as cause:
        raise damaged(1, f"does not tell what ran ({cause})") from cause
    return SavedRun(path, settings, tuple(found[index] for index in sorted(found)), made)


class _SaveError(CommandError):
    """An error of `RecordFile`, with the option that named the file."""

    def __init__(self, message: str) -> None:
        super().__init__(f"--save: {message}")
