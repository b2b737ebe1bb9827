"""Rows of data sets, from files and from the hub: their location for messages, and the fields."""

from __future__ import annotations

import csv
import io
import os
from codecs import BOM_UTF8
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..extras import require
from ..records.strict_json import loads
from .task import TaskFileError

_LONGEST_FIELD = 1 << 24  # characters of a field of a CSV file


class Row(NamedTuple):
    """place: such as `task file a.jsonl, line 3`. number: from 1; names a row that has no name."""

    place: str
    number: int
    fields: dict[str, Any]


def file_rows(path: str | os.PathLike[str]) -> list[Row]:
    """Reads a .jsonl, .json, .csv or .parquet file; with another suffix it is read like .jsonl.

    Raises TaskFileError, which names the file and the line; MissingExtraError without pyarrow for .parquet.
    """
    file = Path(path)
    readers = {".json": _json, ".csv": _csv, ".parquet": _parquet}
    try:
        rows = list(readers.get(file.suffix.lower(), _lines)(file))
    except OSError as cause:
        raise TaskFileError(f"task file {file}: cannot be read: {cause.strerror or cause}") from cause
    if not rows:
        raise TaskFileError(
            f'task file {file}: holds no task; expected one JSON object a line: {{"prompt": "..."}}'
        )
    return rows


def hub_rows(name: str, config: str | None, split: str) -> list[Row]:
    """Reads a data set on the hub with the package `datasets`.

    Raises TaskFileError if it is not available; MissingExtraError without `datasets`.
    """
    require("datasets")
    import datasets

    place = f"data set {name}" + (f" ({config})" if config else "")
    try:
        loaded = datasets.load_dataset(name, config, split=split)
        return [Row(f"{place}, row {number}", number, dict(row)) for number, row in enumerate(loaded, 1)]
    except Exception as cause:  # whatever the hub and its readers raise
        reason = str(cause).strip().partition("\n")[0]
        raise TaskFileError(
            f"{place}: got {type(cause).__name__}: {reason:.200}, expected its split {split!r}; check "
            "the name, the network and what the hub lets you read, or give a file"
        ) from cause


def _lines(file: Path) -> Iterator[Row]:
    for number, line in enumerate(file.read_bytes().removeprefix(BOM_UTF8).split(b"\n"), start=1):
        if line.strip():
            place = f"task file {file}, line {number}"
            yield Row(place, number, _object(place, _loaded(place, line)))


def _json(file: Path) -> Iterator[Row]:
    place = f"task file {file}"
    rows = _loaded(place, file.read_bytes())
    if not isinstance(rows, list):
        raise TaskFileError(f"{place}: got {type(rows).__name__}, expected a list of objects")
    for number, row in enumerate(rows, start=1):
        yield Row(f"{place}, entry {number}", number, _object(f"{place}, entry {number}", row))


def _csv(file: Path) -> Iterator[Row]:
    before = csv.field_size_limit(_LONGEST_FIELD)
    try:
        text = file.read_text(encoding="utf-8-sig")
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        heading = reader.fieldnames or []
        for name in heading:
            if heading.count(name) > 1:
                raise TaskFileError(f"task file {file}: has the column {name!r:.80} twice; rename one")
        for number, row in enumerate(reader, start=1):
            place = f"task file {file}, row {number}"
            if None in row or None in row.values():
                raise TaskFileError(
                    f"{place}: got another number of fields than the heading's {len(heading)}"
                )
            yield Row(place, number, {name: value for name, value in row.items() if value != ""})
    except UnicodeDecodeError as cause:
        raise TaskFileError(f"task file {file}: is not UTF-8 text (byte {cause.start + 1})") from None
    except csv.Error as cause:
        raise TaskFileError(f"task file {file}: is not CSV: {cause}") from None
    finally:
        csv.field_size_limit(before)


def _parquet(file: Path) -> Iterator[Row]:
    require("pyarrow")
    import pyarrow.parquet

    file.open("rb").close()  # raises the system's error if the file is missing
    try:
        table = pyarrow.parquet.read_table(file)
        rows = table.to_pylist()
        narrow = [
            field.name for field in table.schema if field.type in (pyarrow.float16(), pyarrow.float32())
        ]
    except pyarrow.ArrowException as cause:
        raise TaskFileError(f"task file {file}: is not Parquet: {str(cause).partition('.')[0]}") from cause
    for number, row in enumerate(rows, start=1):
        for name in narrow:  # 0.1 as it was written, not a float32 widened to float64
            if row[name] is not None:
                row[name] = float(str(np.float32(row[name])))
        yield Row(f"task file {file}, row {number}", number, row)


def _loaded(place: str, text: bytes) -> Any:
    try:
        return loads(text)
    except ValueError as cause:
        raise TaskFileError(f"{place}: {cause}") from cause


def _object(place: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TaskFileError(f'{place}: got {type(value).__name__}, expected an object with "prompt"')
    return value
