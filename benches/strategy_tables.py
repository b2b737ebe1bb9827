"""Measures every measured table of docs/strategies.md: python -m benches.strategy_tables

Measures one table at a time, saves each in `benches/results/strategy_tables.json` when it ends, and generates
the page from these records. A later call continues: a table that was measured with the same settings
(`benches/strategies/measured.py`) is not measured again, unless it is named or with --again. The two that
take hours, `strategies` and `search_comparison`, keep their own files, whose content is measured again only
with --again.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from benches.markers import fill
from benches.strategies.measured import GROWN, MEASURED, Grown, Measured
from benches.strategies.page import fill_rows
from benches.strategies.records import load, save

Record = dict[str, Any]

ROOT = Path(__file__).parents[1]
RECORDS = ROOT / "benches/results/strategy_tables.json"
PAGE = ROOT / "docs/strategies.md"
TABLES: Mapping[str, Measured | Grown] = GROWN | MEASURED
NOT_YET = "Not measured yet: `python -m benches.strategy_tables {name}`."


def write_page(path: Path, records: Mapping[str, Record]) -> None:
    """Regenerates the measured parts of the page."""
    path.write_text(page_of(path.read_text(encoding="utf-8"), records), encoding="utf-8")


def page_of(page: str, records: Mapping[str, Record]) -> str:
    """records: of the tables in MEASURED; those in GROWN are read from their own files."""
    known = dict(records) | {name: table.read() for name, table in GROWN.items() if table.file.exists()}
    texts = {
        name: table.text(known[name]) if name in known else NOT_YET.format(name=name)
        for name, table in TABLES.items()
    }
    filled = fill(page, texts)
    return fill_rows(filled, known["strategies"]) if "strategies" in known else filled


def measure(name: str, records: dict[str, Record], path: Path, *, named: bool, again: bool) -> bool:
    """Measures a table, unless that was done before; then False is returned."""
    table = TABLES[name]
    if isinstance(table, Grown):
        if again:
            table.file.unlink(missing_ok=True)
        table.measure()
        return True
    if name in records and table.fits(records[name]) and not (named or again):
        return False
    record = table.record()
    records |= load(path, MEASURED) | {name: record}  # another run may have written its tables meanwhile
    save(path, records)
    return True


def main(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help="Default: all.")] = None,
    list_tables: Annotated[bool, typer.Option("--list", help="Print the names and dates, and end.")] = False,
    again: Annotated[bool, typer.Option(help="Measure also what was measured with these settings.")] = False,
    page_only: Annotated[bool, typer.Option(help="Write the page and measure nothing.")] = False,
) -> None:
    unknown = [name for name in names or () if name not in TABLES]
    if unknown:
        raise typer.BadParameter(f"NAME: got {unknown[0]}, expected one of {', '.join(TABLES)}")
    records = load(RECORDS, MEASURED)
    if list_tables:
        for name, table in TABLES.items():
            own = f"in {table.file.name}" if isinstance(table, Grown) else "not measured"
            print(f"{name:18} {records[name]['date'] if name in records else own}")
        return
    chosen = [] if page_only else list(dict.fromkeys(names or TABLES))
    for number, name in enumerate(chosen, start=1):
        print(f"{number} of {len(chosen)}: {name}", file=sys.stderr, flush=True)
        began = time.perf_counter()
        if measure(name, records, RECORDS, named=bool(names), again=again):
            print(f"    {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
            write_page(PAGE, records)
        else:
            print(f"    measured before, {records[name]['date']}", file=sys.stderr, flush=True)
    write_page(PAGE, records)


if __name__ == "__main__":
    typer.run(main)
