"""The tables of a sweep as Parquet files, for pandas and pyarrow."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from ..errors import ResultFileError
from ..extras import require
from ..records.whole_file import write_whole
from .budgets import Budget
from .estimates import Estimate
from .searches import Sample, Search

_SETTING = {"strategy": "string", "width": "int32", "sparse": "bool"}
_KEY = {"cell": "string", **_SETTING, "seed": "int64", "problem": "int32"}
_INTERVAL = {"value": "float64", "low": "float64", "high": "float64"}
_COLUMNS: dict[str, dict[str, str]] = {
    "searches": {
        **_KEY,
        "task": "string",
        "solved": "bool",
        "found": "bool",
        "tokens": "int64",
        "seconds": "float64",
        "mean_kv_bytes": "float64",
        "peak_kv_bytes": "float64",
        "eflops": "float64",
        "stopped": "string",
        "error": "string",
    },
    "samples": {
        **_KEY,
        "sample": "int32",
        "correct": "bool",
        "answer": "int32",
        "score": "float64",
    },
    "estimates": {
        **_SETTING,
        "measure": "string",
        "k": "int32",
        **_INTERVAL,
        "method": "string",
        "error": "float64",
        "problems": "int32",
        "searches": "int32",
        "fewer": "int32",
    },
    "budgets": {
        "strategy": "string",
        "sparse": "bool",
        "target": "float64",
        "unit": "string",
        "width": "int32",
        "amount": "float64",
        **_INTERVAL,
        "sure": "bool",
    },
}
_ABOUT = {"schema": "tts-decode/sweep-tables", "version": "1"}
_PREFIX = "sweep-"  # searches.parquet and others belong to `search.write_parquet`


def write_tables(
    folder: str | os.PathLike[str],
    searches: Sequence[Search],
    estimates: Sequence[Estimate],
    budgets: Sequence[Budget] = (),
) -> None:
    """Writes sweep-NAME.parquet of searches, samples, estimates and budgets, each whole or not at all.

    docs/sweeps.md lists the columns. Raises ResultFileError if a file cannot be written, MissingExtraError
    without pyarrow.
    """
    require("pyarrow")
    import pyarrow
    import pyarrow.parquet

    rows: dict[str, list[dict[str, Any]]] = {
        "searches": [_row(search, "searches") for search in searches],
        "samples": [
            _row(search, "samples") | {"sample": number} | asdict(sample)
            for search in searches
            for number, sample in enumerate(search.samples)
        ],
        "estimates": [_row(found, "estimates") | found.interval._asdict() for found in estimates],
        "budgets": [
            _row(found, "budgets") | ({} if found.accuracy is None else found.accuracy._asdict())
            for found in budgets
        ],
    }
    for name, columns in _COLUMNS.items():
        schema = pyarrow.schema(
            [(column, pyarrow.type_for_alias(kind)) for column, kind in columns.items()], metadata=_ABOUT
        )
        sink = pyarrow.BufferOutputStream()
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows[name], schema), sink)
        path = _path(folder, name)
        try:
            write_whole(path, sink.getvalue().to_pybytes())
        except OSError as cause:
            raise ResultFileError(
                f"{path}: cannot be written: {cause.strerror}; nothing was changed"
            ) from cause


def read_sweep(folder: str | os.PathLike[str]) -> list[Search]:
    """Returns the searches that `write_tables` wrote, with their samples.

    Raises ResultFileError if they cannot be read or are not a sweep's, MissingExtraError without pyarrow.
    """
    samples: dict[tuple[str, int], list[Sample]] = {}
    names = {field.name for field in fields(Search)} - {"samples"}
    for row in _read(folder, "samples"):
        sample = Sample(row["correct"], row["answer"], row["score"])
        samples.setdefault((row["cell"], row["problem"]), []).append(sample)
    return [
        Search(
            **{name: row[name] for name in names},
            samples=tuple(samples.get((row["cell"], row["problem"]), ())),
        )
        for row in _read(folder, "searches")
    ]


def _read(folder: str | os.PathLike[str], name: str) -> list[dict[str, Any]]:
    require("pyarrow")
    import pyarrow
    import pyarrow.parquet

    path = _path(folder, name)
    try:
        table = pyarrow.parquet.read_table(path)
    except (OSError, pyarrow.ArrowException) as cause:
        raise ResultFileError(f"{path}: cannot be read: {str(cause).partition(chr(10))[0]}") from cause
    if missing := _COLUMNS[name].keys() - set(table.column_names):
        raise ResultFileError(f"{path}: has no column {min(missing)}, so it is no table of a sweep")
    found: list[dict[str, Any]] = table.to_pylist()
    return found


def _path(folder: str | os.PathLike[str], name: str) -> Path:
    return Path(folder) / f"{_PREFIX}{name}.parquet"


def _row(item: object, table: str) -> dict[str, Any]:
    return {column: getattr(item, column) for column in _COLUMNS[table] if hasattr(item, column)}
