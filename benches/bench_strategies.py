"""Where the time of a search goes: model, sampling, the decoder's own work, the strategy.

    python -m benches.bench_strategies --n 64

Each strategy runs on the default problems. "model" is the forward, "sampling" the draw of the next tokens
from the logits (a softmax over the vocabulary), "engine" what the scheduler does besides (plan, pages,
requests), and "strategy" all the rest: selection, scores, records, asyncio. Target: all but the model and the
draw under 5% at 64 branches.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Annotated, Any

import tts_decode.scheduler
import typer
from rich.console import Console
from rich.table import Table
from tts_decode import SamplingParams, TreeDecoder
from tts_decode.engines.loading import DEFAULT_MODEL, load_model
from tts_decode.rewards import mean_probability
from tts_decode.search import Strategy, get_strategy
from tts_decode.tasks import Task, default_tasks


class Clock:
    """Adds up the wall time spent in functions that it wraps."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - started

        return timed


def measure(
    model: Any, tokenizer: Any, strategy: Strategy[...], n: int, tasks: list[Task], max_tokens: int
) -> dict[str, float]:
    """Seconds of each part of one search after the other, and the steps of the engine."""
    decoder = TreeDecoder(model, tokenizer)
    forward, draw = Clock(), Clock()
    decoder._engine.forward = forward.around(decoder._engine.forward)  # type: ignore[method-assign]
    sample = tts_decode.scheduler.sample
    tts_decode.scheduler.sample = draw.around(sample)
    sampling = SamplingParams(0.8, max_tokens=max_tokens, max_step_tokens=32, stop=("\n",))
    options: dict[str, Any] = {"n": n} | ({"scorer": mean_probability()} if strategy.needs_scorer else {})

    async def search(task: Task) -> None:
        root = await decoder.root([{"role": "user", "content": task.prompt}], sampling)
        await strategy(root, **options)
        root.release()

    started = time.perf_counter()
    try:
        for task in tasks:
            decoder.run(search(task))
    finally:
        tts_decode.scheduler.sample = sample
    wall, stats = time.perf_counter() - started, decoder.stats()
    engine = stats.seconds - forward.seconds - draw.seconds
    return {
        "wall": wall,
        "model": forward.seconds,
        "sampling": draw.seconds,
        "engine": engine,
        "strategy": wall - stats.seconds,
        "steps": stats.steps,
    }


def main(
    strategy: Annotated[list[str], typer.Option("--strategy", "-s", help="May be repeated.")] = [  # noqa: B006
        "best_of_n",
        "beam_search",
        "rebase",
        "ets",
    ],
    n: Annotated[int, typer.Option(help="Branches.")] = 64,
    limit: Annotated[int, typer.Option(help="Problems.")] = 3,
    max_tokens: Annotated[int, typer.Option(help="Longest answer.")] = 64,
) -> None:
    """Print where the time of each strategy goes."""
    model, tokenizer = load_model(DEFAULT_MODEL)
    tasks = default_tasks(limit)
    table = Table("strategy", title=f"{limit} problems, n={n}, {model.dtype}: share of the wall time")
    for name in ("ms a step", "model", "sampling", "engine", "strategy", "engine + strategy"):
        table.add_column(name, justify="right")
    for name in strategy:
        measure(model, tokenizer, get_strategy(name), n, tasks[:1], 8)  # first calls compile and allocate
        spent = measure(model, tokenizer, get_strategy(name), n, tasks, max_tokens)
        shares = [spent[part] / spent["wall"] for part in ("model", "sampling", "engine", "strategy")]
        shares.append(shares[2] + shares[3])
        milliseconds = spent["wall"] / spent["steps"] * 1e3
        table.add_row(name, f"{milliseconds:.1f}", *(f"{share:.1%}" for share in shares))
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
