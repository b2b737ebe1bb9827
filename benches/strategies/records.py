"""The file of the measurements for docs/strategies.md: a record for each table."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

Record = dict[str, Any]

FIELDS = {"date", "versions", "cpu", "settings", "figures"}


class RecordsError(ValueError):
    """The file of records cannot be used; the message names it and says what is wrong."""


def load(path: Path, names: Iterable[str]) -> dict[str, Record]:
    """The records of a file, by the name of their table; none where there is no file.

    Raises RecordsError where the file holds anything but records of tables with these names.
    """
    if not path.exists():
        return {}
    try:
        records = json.loads(path.read_bytes())
    except ValueError as cause:
        raise RecordsError(f"{path}: got no JSON ({cause}); remove the file or repair it") from cause
    names = list(names)
    for name, record in records.items() if isinstance(records, dict) else [("", records)]:
        if name not in names or not isinstance(record, dict) or record.keys() != FIELDS:
            raise RecordsError(
                f"{path}: got the entry {name!r}, expected tables ({', '.join(names)}) with "
                f"{', '.join(sorted(FIELDS))} each; remove the file or repair it"
            )
    return dict(records)


def save(path: Path, records: Mapping[str, Record]) -> None:
    """Writes all of it or, where that fails, nothing. A record is a line, so that a change shows which."""
    lines = [f"{json.dumps(name)}: {json.dumps(record)}" for name, record in sorted(records.items())]
    partial = path.with_suffix(".partial")
    partial.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    os.replace(partial, path)
