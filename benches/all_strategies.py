"""Runs every strategy on the default model as in its paper, and records what it solved and its cost.

`python -m benches.all_strategies` runs one strategy at a time, each with its setup
(`benches/strategies/setups.py`), and records each when it ends: a later call continues with those that are
missing or whose setup changed. `python -m benches.strategy_tables strategies` does the same and writes the
figures into docs/strategies.md.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Annotated, Any

import torch
import transformers
import typer
from tts_decode import SamplingParams, TreeDecoder, gather
from tts_decode.cli.outcomes import Outcome
from tts_decode.cli.problems import Settings, make_prompt
from tts_decode.default_model import DEFAULT_MODEL
from tts_decode.model.loading import load_model
from tts_decode.search import STRATEGIES, Strategy
from tts_decode.tasks import Task

from benches.strategies.kit import Kit
from benches.strategies.page import HEADS, cells, settings
from benches.strategies.problems import problems as problems_of
from benches.strategies.setups import NOT_RUN, SETUPS, Setup, described
from benches.tables import Table

Record = dict[str, Any]

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benches/results/all_strategies.json"
MODELS = ROOT / "build/peers/models"  # where the second model's file is, or is put
SETTINGS: Record = {
    "model": DEFAULT_MODEL,
    "dtype": "bfloat16",
    "problems": 8,
    "n": 8,
    "temperature": 0.8,
    "seed": 0,
    "max_tokens": 64,
    "max_step_tokens": 32,
}


def run(record: Record, path: Path) -> None:
    """Adds the strategies that `record` lacks, and writes it to `path` after each."""
    model, tokenizer = load_model(record["model"], record["dtype"], weights="file", pack_weights=True)
    sampling = SamplingParams(
        record["temperature"],
        seed=record["seed"],
        stop=("\n",),
        max_tokens=record["max_tokens"],
        max_step_tokens=record["max_step_tokens"],
    )
    decoder = TreeDecoder(model, tokenizer)
    kit = Kit(decoder, record["model"], sampling, MODELS)
    for number, strategy in enumerate(missing(record), start=1):
        setup = setup_of(strategy, record["n"])
        tasks = problems_of(setup.problems, record["problems"])
        began = time.perf_counter()
        own = replace(sampling, **setup.sampling)
        outcomes = decoder.run(searches(decoder, strategy, setup, tasks, kit, own))
        kept = figures(outcomes) | {"setup": described(setup), "date": date.today().isoformat()}
        record["strategies"][strategy.name] = kept
        path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        seconds = time.perf_counter() - began
        print(f"{number:3} {strategy.name}: {cells(kept)}, {seconds:.0f} s", file=sys.stderr, flush=True)
        for error in kept["errors"]:
            print(f"    {error}", file=sys.stderr)


def setup_of(strategy: Strategy[...], n: int) -> Setup:
    """With the size of the search and what scores it filled in: size `n`, or the default where that is less,
    and `mean_probability` where a scorer is needed and none is named."""
    setup = SETUPS.get(strategy.name, Setup())
    size = {strategy.size: min(n, strategy.parameters[strategy.size].default)}
    scorer = setup.scorer or ("mean_probability" if strategy.needs_scorer else None)
    return Setup(setup.problems, scorer, size | dict(setup.options), setup.sampling)


async def searches(
    decoder: TreeDecoder,
    strategy: Strategy[...],
    setup: Setup,
    tasks: Sequence[Task],
    kit: Kit,
    sampling: SamplingParams,
) -> list[Outcome]:
    """All tasks in one batch, each with what the setup means for it."""
    given = [await kit.options(setup, task) for task in tasks]

    async def solve(task: Task, options: dict[str, Any]) -> Outcome:
        try:
            root = await decoder.root(make_prompt(task.prompt, decoder, Settings(sampling)), sampling)
            try:
                return Outcome(task, await strategy(root, **options))
            finally:
                root.release()
        except Exception as error:  # of whatever kind: it is this problem's
            return Outcome(task, None, error)

    return await gather(solve(task, options) for task, options in zip(tasks, given, strict=True))


def figures(outcomes: Sequence[Outcome]) -> Record:
    """Of the searches of a strategy. generated_tokens: of all models together, a search. KV: of all models
    that the search holds branches of, averaged over its time and over the searches, bytes."""
    results = [outcome.result for outcome in outcomes if outcome.result is not None]
    count = max(len(results), 1)
    return {
        "problems": len(outcomes),
        "solved": sum(bool(outcome.solved) for outcome in outcomes),
        "generated_tokens": sum(result.stats.generated_tokens for result in results) / count,
        "mean_kv_bytes": sum(result.stats.mean_bytes for result in results) / count,
        "peak_kv_bytes": sum(result.stats.peak_bytes for result in results) / count,
        "ended_early": sorted({result.stopped for result in results if result.stopped}),
        "errors": [f"{o.task.name}: {o.error!r}" for o in outcomes if o.error is not None],
    }


def measure(settings: Record, path: Path) -> Record:
    """What `path` holds, with the strategies that it lacks run and added. settings: as `SETTINGS`."""
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    record: Record = settings | {"versions": versions, "strategies": {}}
    if path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))
        if any(before.get(key) != record[key] for key in (*settings, "versions")):
            raise typer.BadParameter(f"{path} is of other settings; remove it, or give another --results")
        record = before
    if missing(record):
        run(record, path)
    return record


def missing(record: Record) -> list[Strategy[...]]:
    """Our strategies that were not run, or with another setup."""
    setups = {name: kept["setup"] for name, kept in record["strategies"].items()}
    return [
        strategy
        for name, strategy in STRATEGIES.items()
        if strategy.family != "own"
        and name not in NOT_RUN
        and setups.get(name) != described(setup_of(strategy, record["n"]))
    ]


def main(
    model: str = SETTINGS["model"],
    dtype: Annotated[str, typer.Option(help="of activations and KV; weights stay as in the file")] = SETTINGS[
        "dtype"
    ],
    problems: int = SETTINGS["problems"],
    n: Annotated[int, typer.Option(help="size of each search, or the strategy's default if less")] = SETTINGS[
        "n"
    ],
    seed: int = SETTINGS["seed"],
    temperature: float = SETTINGS["temperature"],
    max_tokens: int = SETTINGS["max_tokens"],
    max_step_tokens: int = SETTINGS["max_step_tokens"],
    results: Annotated[Path, typer.Option(help="what was measured so far, and is")] = RESULTS,
) -> None:
    values = (model, dtype, problems, n, temperature, seed, max_tokens, max_step_tokens)
    record = measure(dict(zip(SETTINGS, values, strict=True)), results)
    rows = [[name, *cells(kept)] for name, kept in record["strategies"].items()]
    Table(["strategy", *HEADS[1:]], rows).show(settings(record))


if __name__ == "__main__":
    typer.run(main)
