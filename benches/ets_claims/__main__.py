"""`python -m benches.ets_claims COMMAND`: each step writes its part, and goes on where it was interrupted."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from benches.ets_claims.record import record as record_searches

RECORD = Path("benches/results/ets_record.jsonl")

app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__)


@app.command()
def record(
    problems: Annotated[int, typer.Option(help="how many, from the first on")] = 30,
    file: Annotated[Path, typer.Option("--record", help="where the trees go")] = RECORD,
) -> None:
    """Searches the default model at width 16 with Monte-Carlo scores; hours on a shared machine."""
    record_searches(file, problems)


if __name__ == "__main__":
    app()
