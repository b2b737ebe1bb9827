"""A file of the measurements, part by part, from which the next call continues."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import typer
from tts_decode.records.record_file import RecordFile, read_records
from typing_extensions import Self

Record = dict[str, Any]
SCHEMA, VERSION = "ets-claims", 1


class Ledger:
    """Results by part and key, kept in `path`; each is written as it comes."""

    def __init__(self, path: Path) -> None:
        self._file = RecordFile(path, SCHEMA, VERSION, resume=True, error=typer.BadParameter)
        if self._file.header is None:
            self._file.write({})
        self._known = {
            _name(record["part"], record["key"]): record["result"] for record in self._file.records
        }

    def known(self, part: str, key: Record) -> bool:
        return _name(part, key) in self._known

    def result(self, part: str, key: Record, make: Callable[[], Record]) -> Record:
        """What is known of the key, or what `make` returns, which is written down."""
        name = _name(part, key)
        if name not in self._known:
            found = json.loads(json.dumps(make()))
            self._file.write({"part": part, "key": key, "result": found})
            self._known[name] = found
        return self._known[name]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def read_ledger(path: Path) -> list[Record]:
    """All entries, {"part", "key", "result"} each; the file may be in use."""
    return read_records(path, SCHEMA, VERSION, error=typer.BadParameter)[1]


def _name(part: str, key: Record) -> str:
    return json.dumps([part, key], sort_keys=True)
