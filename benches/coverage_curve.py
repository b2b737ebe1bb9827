"""Coverage of repeated sampling: python -m benches.coverage_curve

Samples many answers to each of the default problems, judges all of them, and prints an unbiased estimate of
the share of problems that k samples solve, compared with a majority vote over all samples.
"""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.console import Console
from tts_decode import SamplingParams, TreeDecoder
from tts_decode.default_model import DEFAULT_MODEL
from tts_decode.model.loading import load_model
from tts_decode.search import repeated_sampling
from tts_decode.select import coverage_curve, coverage_fit, wilson_interval
from tts_decode.select.statistics import Interval
from tts_decode.tasks import Task, default_tasks

from benches.tables import Table, percent

Record = dict[str, Any]


async def judged(decoder: TreeDecoder, task: Task, n: int, sampling: SamplingParams) -> tuple[int, bool]:
    """How many of `n` samples are right, and whether their vote is."""
    root = await decoder.root([{"role": "user", "content": task.prompt}], sampling)
    try:
        result = await repeated_sampling(root, max_samples=n, parallel=n)
    finally:
        root.release()
    assert task.verify is not None
    return sum(task.verify(c.text) == 1 for c in result.candidates), task.verify(result.answer) == 1


def measure(
    *, n: int, problems: int, temperature: float, seed: int, max_tokens: int, model: str, dtype: str
) -> Record:
    """right: of each problem, how many of its samples are. votes: whether their vote is."""
    decoder = TreeDecoder(*load_model(model, dtype))
    sampling = SamplingParams(temperature, seed=seed, max_tokens=max_tokens, max_step_tokens=max_tokens)
    tasks = default_tasks(problems)
    outcomes = decoder.run_all([judged(decoder, task, n, sampling) for task in tasks])
    return {"n": n, "right": [right for right, _ in outcomes], "votes": [vote for _, vote in outcomes]}


def curve(figures: Record) -> dict[int, float]:
    """k -> the share of problems that k samples solve, for k = 1, 2, 4 ... n."""
    n = figures["n"]
    ks = [2**i for i in range(n.bit_length())]
    return dict(zip(ks, coverage_curve([(n, right) for right in figures["right"]], ks), strict=True))


def solved(figures: Record) -> Interval:
    """The share of problems that all samples solve, with its interval of 95 % over the problems."""
    return wilson_interval(sum(right > 0 for right in figures["right"]), len(figures["right"]))


def main(
    n: Annotated[int, typer.Option(help="Samples of each problem.")] = 64,
    problems: int = 24,
    temperature: float = 0.8,
    seed: int = 0,
    max_tokens: int = 64,
    model: str = DEFAULT_MODEL,
    dtype: str = "auto",
) -> None:
    """Print coverage by the number of samples, with 95 % intervals over the problems at the last one."""
    figures = measure(
        n=n,
        problems=problems,
        temperature=temperature,
        seed=seed,
        max_tokens=max_tokens,
        model=model,
        dtype=dtype,
    )
    coverage = curve(figures)
    rows = [[str(k), percent(share, 1)] for k, share in coverage.items()]
    title = f"{problems} problems, temperature {temperature:g}: solved by any of k"
    Table(["samples", "coverage"], rows).show(title)
    any_of, console = solved(figures), Console()
    console.print(f"any of {n}: {any_of.value:.1%} ({any_of.low:.1%} to {any_of.high:.1%})")
    console.print(f"vote of {n}: {sum(figures['votes'])} of {problems}")
    inside = [(k, share) for k, share in coverage.items() if 0 < share < 1]
    if len(inside) > 1:
        a, b = coverage_fit(*zip(*inside, strict=True))
        console.print(f"fitted: coverage = exp({a:.3g} k ** {b:.3g})")


if __name__ == "__main__":
    typer.run(main)
