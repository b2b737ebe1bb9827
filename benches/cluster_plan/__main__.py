"""What a cluster can do: `python -m benches.cluster_plan` plans ETS on a 70B model by the cost law.

It also compares the law with steps of this machine.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from benches.cluster_plan import measured, page
from benches.cluster_plan.plan import line_through, plan
from benches.cluster_plan.trees import read, simulation, told
from benches.tables import tracked

ROOT = Path(__file__).parents[2]

app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__)
RecordOption = Annotated[Path, typer.Option("--json", help="What the tables are made of.")]
_RECORD = ROOT / "benches/results/cluster_plan.json"


@app.command()
def simulate(
    count: Annotated[int, typer.Option(help="Searches: some ten seconds each.")] = 12,
    trees: Annotated[Path, typer.Option(help="The recorded trees that problems are fitted to.")] = ROOT
    / "benches/results/ets_record.jsonl",
    record: RecordOption = _RECORD,
) -> None:
    """Simulates searches of ETS at width 256, whose KV the plan has to hold."""
    search = simulation(trees)
    _update(record, "trees", told([search(problem) for problem in tracked(range(count), "searches")]))


@app.command()
def measure(record: RecordOption = _RECORD) -> None:
    """Compares steps of the default model with the law on this machine, and measures the host's part."""
    _update(record, "machine", measured.machine_name())
    _update(record, "host", measured.host())
    _update(record, "check", measured.check())


@app.command(name="page")
def write_page(
    record: RecordOption = _RECORD,
    docs: Annotated[Path, typer.Option(help="The page with the tables.")] = ROOT / "docs/scaling.md",
) -> None:
    """Plans, and writes the tables of the page."""
    found = _read(record)
    _update(record, "plan", plan(read(found["trees"]), line_through(found["host"])))
    docs.write_text(page.filled(docs.read_text(encoding="utf-8"), _read(record)), encoding="utf-8")


def _read(record: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(record.read_text(encoding="utf-8")) if record.exists() else {}
    return found


def _update(record: Path, part: str, found: object) -> None:
    """Writes one part per line, so that a diff shows which one changed."""
    parts = _read(record) | {part: found}
    lines = [f" {json.dumps(name)}: {json.dumps(value)}" for name, value in parts.items()]
    record.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    app()
