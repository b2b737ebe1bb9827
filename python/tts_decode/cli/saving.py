"""A folder with the results of `compare`, written while it runs, from which it goes on after a crash.

NAME.jsonl holds a header with the settings, then a line for each search as it ends: what
`problems.describe` says, and under "search" the whole result (docs/results.md). Searches under way keep a
journal in NAME/INDEX.journal, which goes when they end. NAME is the strategy's, with "-sparse" after a sparse
run's. Where pyarrow is installed, NAME/*.parquet has the results of all searches in the end.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tts_decode.cli.errors import CommandError, UsageError
from tts_decode.search import Journal, SearchResult, write_parquet

_SCHEMA, _VERSION = "tts-decode/compare", 1


def check_folder(folder: Path | None, names: list[str], *, resume: bool) -> None:
    """UsageError where results would be overwritten, or there is nothing to resume."""
    if folder is None:
        if resume:
            raise UsageError("--resume: needs --save FOLDER, the folder of the interrupted run")
        return
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--save: {folder} is a file, expected a folder")
    held = [name for name in names if _file(folder, name).exists()]
    if held and not resume:
        raise UsageError(
            f"--save: {folder} holds results of {held[0]} already; give --resume to go on with them, or "
            "another folder"
        )


def _file(folder: Path, name: str) -> Path:
    return folder / f"{name}.jsonl"


class Saved:
    """The results of one strategy. `with Saved(...) as saved`: the file is open meanwhile.

    results: those found in the file, with the searches' cost in eFLOPs, by the task's index. Searches that
    failed are not among them: they run again.

    Raises CommandError: the file is damaged, of another version, or was written with other settings.
    """

    def __init__(self, folder: Path, name: str, settings: Mapping[str, Any]) -> None:
        self.results: dict[int, tuple[SearchResult, float]] = {}
        self._path = _file(folder, name)
        self._journals = folder / name
        self._header = {"schema": _SCHEMA, "version": _VERSION, "settings": settings}
        try:
            self._journals.mkdir(parents=True, exist_ok=True)
            whole = self._read() if self._path.exists() else 0
            self._stream = open(self._path, "r+b" if whole else "wb")  # noqa: SIM115 (closed on leaving)
        except OSError as cause:
            raise CommandError(f"--save: {self._path} cannot be written: {cause.strerror}") from cause
        self._stream.truncate(whole)
        self._stream.seek(whole)
        if not whole:
            self._write(self._header)

    def __enter__(self) -> Saved:
        return self

    def __exit__(self, *error: object) -> None:
        self._stream.close()
        if self.results and find_spec("pyarrow"):
            write_parquet([self.results[index][0] for index in sorted(self.results)], self._journals)

    def journal(self, index: int) -> Journal:
        return Journal(self._journal(index), resume=True)

    def add(self, index: int, described: dict[str, Any], result: SearchResult | None) -> None:
        search = None if result is None else result.to_dict()
        self._write({"index": index} | described | {"search": search})
        self._journal(index).unlink(missing_ok=True)
        if result is not None:
            self.results[index] = result, described["eflops"]

    def _journal(self, index: int) -> Path:
        return self._journals / f"{index}.journal"

    def _write(self, line: dict[str, Any]) -> None:
        self._stream.write(json.dumps(line).encode() + b"\n")
        self._stream.flush()

    def _read(self) -> int:
        """Reads the lines; returns how many bytes of the file are whole."""
        good = 0
        for number, line in enumerate(self._path.read_bytes().splitlines(keepends=True), start=1):
            if not line.endswith(b"\n"):
                break  # what was being written
            try:
                data = json.loads(line)
                if number == 1:
                    self._check(data)
                elif data["search"] is not None:
                    self.results[int(data["index"])] = SearchResult.from_dict(data["search"]), data["eflops"]
            except (ValueError, KeyError, TypeError) as cause:
                raise CommandError(f"--resume: {self._path}, line {number}: is damaged ({cause})") from cause
            good += len(line)
        return good

    def _check(self, header: Any) -> None:
        if not isinstance(header, dict) or header.get("schema") != _SCHEMA:
            raise CommandError(f"--resume: {self._path} does not hold results of tts-decode compare")
        if header.get("version") != _VERSION:
            raise CommandError(
                f"--resume: {self._path} is of version {header.get('version')!r}, this package reads "
                f"{_VERSION}; start anew in another folder"
            )
        ours = json.loads(json.dumps(self._header["settings"]))
        for key, value in ours.items():
            theirs = header["settings"].get(key)
            if theirs != value:
                raise CommandError(
                    f"--resume: {self._path} was written with {key}={theirs!r:.100}, not {value!r:.100}; "
                    "start anew in another folder"
                )
