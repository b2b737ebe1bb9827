"""Search results as files: JSON for one result, Parquet for tables of many. See docs/results.md."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import ResultFileError
from ..extras import require
from ..records.strict_json import loads, seal, unseal
from ..records.whole_file import write_whole
from .result import SCHEMA, VERSION, SearchResult


def write_json(result: SearchResult, path: str | os.PathLike[str]) -> None:
    """Writes one result, with a checksum; the file appears whole or not at all.

    Raises ResultFileError if it cannot be written; an existing file is then unchanged.
    """
    text, _ = seal(result.to_dict())
    _replace(Path(path), text.encode())


def read_json(path: str | os.PathLike[str]) -> SearchResult:
    """Reads a result that `write_json` wrote.

    Raises:
        ResultFileError: the file cannot be read, is damaged, no search result, or of another version.
    """
    file = Path(path)
    try:
        data = loads(file.read_bytes())
        if not isinstance(data, dict) or data.get("schema") != SCHEMA:
            raise ValueError(f"is not a search result (no field schema of {SCHEMA!r})")
        if data.get("version") != VERSION:
            raise ValueError(
                f"is of version {data.get('version')!r:.40}, this package reads {VERSION}: read it with the "
                "package that wrote it"
            )
        return SearchResult.from_dict(unseal(data)[0])
    except OSError as cause:
        raise ResultFileError(f"{file}: cannot be read: {cause.strerror}") from cause
    except ValueError as cause:
        raise ResultFileError(f"{file}: {cause}") from cause


# The columns of the Parquet files: name -> type; "[...]" is a list. `search` is the row in searches.parquet.
_COLUMNS: dict[str, dict[str, str]] = {
    "searches": {
        "strategy": "string",
        "answer": "string",
        "best": "int32",  # node of the chosen candidate
        "stopped": "string",
        "votes": "string",  # JSON
        "seconds": "float64",
        "generated_tokens": "int64",
        "kv_tokens": "int64",
        "peak_bytes": "int64",
        "mean_bytes": "float64",
        "page_size": "int32",
        "page_bytes": "int64",
    },
    "nodes": {
        "search": "int32",
        "id": "int32",
        "parent": "int32",
        "at": "int32",
        "text": "string",
        "tokens": "[int32]",
        "logprobs": "[float32]",
        "entropies": "[float32]",
        "score": "float64",
        "status": "string",
        "forced": "bool",
        "sources": "[int32]",
        "began": "float64",
        "ended": "float64",
        "question": "string",
        "ends": "[int32]",
    },
    "candidates": {
        "search": "int32",
        "node": "int32",
        "text": "string",
        "tokens": "[int32]",
        "logprob": "float64",
        "score": "float64",
        "scores": "[float64]",
        "finish_reason": "string",
    },
    "memory": {
        "search": "int32",
        "seconds": "float64",
        "branches": "int32",
        "logical_tokens": "int64",
        "resident_bytes": "int64",
    },
}


def write_parquet(results: Sequence[SearchResult], folder: str | os.PathLike[str]) -> None:
    """Writes searches.parquet, nodes.parquet, candidates.parquet and memory.parquet into a folder.

    Raises ResultFileError if a file cannot be written, MissingExtraError without pyarrow.
    """
    require("pyarrow")
    import pyarrow
    import pyarrow.parquet

    target = Path(folder)
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as cause:
        raise ResultFileError(f"{target}: cannot be made: {cause.strerror}") from cause
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in _COLUMNS}
    for search, result in enumerate(results):
        whole = result.to_dict()
        votes = None if result.votes is None else json.dumps(result.votes)
        rows["searches"].append(whole | whole["stats"] | {"best": result.best.node, "votes": votes})
        parts = {
            "nodes": whole["tree"],
            "candidates": whole["candidates"],
            "memory": whole["stats"]["memory"],
        }
        for name, items in parts.items():
            rows[name] += [{"search": search} | item for item in items]
    about = {"schema": SCHEMA, "version": str(VERSION)}
    for name, columns in _COLUMNS.items():
        schema = pyarrow.schema(
            [(column, _type(pyarrow, kind)) for column, kind in columns.items()], metadata=about
        )
        sink = pyarrow.BufferOutputStream()
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows[name], schema), sink)
        _replace(target / f"{name}.parquet", sink.getvalue().to_pybytes())


def _type(pyarrow: Any, kind: str) -> Any:
    if kind.startswith("["):
        return pyarrow.list_(pyarrow.type_for_alias(kind[1:-1]))
    return pyarrow.type_for_alias(kind)


def _replace(path: Path, content: bytes) -> None:
    try:
        write_whole(path, content)
    except OSError as cause:
        raise ResultFileError(f"{path}: cannot be written: {cause.strerror}; nothing was changed") from cause
