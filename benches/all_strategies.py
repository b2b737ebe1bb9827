"""Every strategy on the same default problems with the default model: what it solved, and what it took.

`python -m benches.all_strategies` runs them one after the other, as `tts-decode compare` does, and writes
each down as it ends: called again, it goes on with those that are missing. The figures then go into the
tables of docs/strategies.md.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Annotated, Any

import torch
import transformers
import typer
from tts_decode import SamplingParams, TreeDecoder
from tts_decode.cli.problems import Settings, run_problems
from tts_decode.cli.scorers import ScorerOf
from tts_decode.cli.tables import Row, as_json
from tts_decode.default_model import DEFAULT_MODEL
from tts_decode.model.loading import load_model
from tts_decode.search import STRATEGIES
from tts_decode.tasks import default_tasks

Record = dict[str, Any]

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benches/results/all_strategies.json"
PAGE = ROOT / "docs/strategies.md"
HEADS = ("solved", "tokens", "KV MiB")
ABOUT = ("model", "problems", "n", "temperature", "seed", "max_tokens", "max_step_tokens", "versions")


def run(record: Record, path: Path) -> None:
    """Adds the strategies that `record` lacks, and writes it to `path` after each."""
    model, tokenizer = load_model(record["model"])
    sampling = SamplingParams(
        record["temperature"],
        seed=record["seed"],
        stop=("\n",),
        max_tokens=record["max_tokens"],
        max_step_tokens=record["max_step_tokens"],
    )
    tasks = default_tasks(record["problems"])
    for number, strategy in enumerate(STRATEGIES.values(), start=1):
        if strategy.name in record["strategies"]:
            continue
        options = {strategy.size: min(record["n"], strategy.parameters[strategy.size].default)}
        decoder = TreeDecoder(model, tokenizer)
        outcomes, stats = run_problems(
            decoder, tasks, strategy, options, Settings(sampling), ScorerOf(None), parallel=len(tasks)
        )
        row = Row(strategy.name, None, outcomes, stats)
        kept = as_json(row, row) | {"options": options}
        del kept["outcomes"], kept["against_first"], kept["sparse"], kept["strategy"]
        kept["errors"] = [f"{o.task.name}: {o.error!r}" for o in row.failures]
        record["strategies"][strategy.name] = kept
        path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        print(f"{number:3} {strategy.name}: {cells(kept)}, {stats.seconds:.0f} s", file=sys.stderr)
        for error in kept["errors"]:
            print(f"    {error}", file=sys.stderr)


def cells(kept: Record) -> tuple[str, str, str]:
    """As `HEADS`: problems solved of all, tokens generated for a problem, a search's KV averaged over its
    time and over the problems."""
    tokens = kept["generated_tokens"] / kept["problems"]
    return f"{kept['solved']}/{kept['problems']}", f"{tokens:,.0f}", f"{kept['mean_kv_bytes'] / 2**20:.1f}"


def fill(page: str, record: Record) -> str:
    """The page with the last three columns of its tables of strategies replaced, or added."""
    measured = {f"[`{name}`]": cells(kept) for name, kept in record["strategies"].items()}

    def columns(line: str) -> str:
        row = [cell.strip() for cell in line.strip("|").split("|")]
        if row[0] == "strategy":
            return _line([*row[:4], *HEADS])
        if name := re.match(r"\[`\w+`\]", row[0]):
            return _line([*row[:4], *measured.get(name[0], ("", "", ""))])
        return line

    lines = page.split("\n")
    for i, line in enumerate(lines):
        if line.startswith("|---") and lines[i - 1].startswith("| strategy |"):
            lines[i] = "|---" * 4 + "|---:" * 3 + "|"
    return "\n".join(columns(line) if line.startswith("| ") else line for line in lines)


def _line(row: list[str]) -> str:
    return f"| {' | '.join(row)} |"


def main(
    model: str = DEFAULT_MODEL,
    problems: int = 12,
    n: Annotated[int, typer.Option(help="size of each search, or the strategy's default if less")] = 8,
    seed: int = 0,
    temperature: float = 0.8,
    max_tokens: int = 64,
    max_step_tokens: int = 32,
    results: Annotated[Path, typer.Option(help="what was measured so far, and is")] = RESULTS,
    page: Annotated[Path, typer.Option(help="whose tables are filled")] = PAGE,
) -> None:
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    about = (model, problems, n, temperature, seed, max_tokens, max_step_tokens, versions)
    record: Record = dict(zip(ABOUT, about, strict=True)) | {"strategies": {}}
    if results.exists():
        before = json.loads(results.read_text(encoding="utf-8"))
        if any(before[key] != record[key] for key in ABOUT):
            raise typer.BadParameter(f"{results} is of other settings; remove it, or give another --results")
        record = before
    run(record, results)
    page.write_text(fill(page.read_text(encoding="utf-8"), record), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
