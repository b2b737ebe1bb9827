"""`python -m benches.kinetics` measures what is missing and writes the tables of docs/kinetics.md."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from benches.kinetics import measured, page

ROOT = Path(__file__).parents[2]


def main(
    problems: Annotated[int, typer.Option(help="Of the default set.")] = 24,
    folder: Annotated[Path, typer.Option(help="Of the saved runs.")] = ROOT / "build/kinetics",
    results: Annotated[Path, typer.Option(help="What the tables are made of.")] = ROOT
    / "benches/results/kinetics.json",
    docs: Annotated[Path, typer.Option(help="The page with the tables.")] = ROOT / "docs/kinetics.md",
    page_only: Annotated[bool, typer.Option("--page-only", help="Measure nothing.")] = False,
) -> None:
    """Accuracy against eFLOPs, dense and sparse: the default model's runs and models of known accuracy."""
    if not page_only:
        measured.run(folder, problems)
        record = {"measured": measured.record(folder), "scripted": page.scripted_record()}
        results.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    record = json.loads(results.read_text(encoding="utf-8"))
    docs.write_text(page.filled(docs.read_text(encoding="utf-8"), record), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
