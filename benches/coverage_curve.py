"""Coverage of repeated sampling: python -m benches.coverage_curve

Samples many answers to each of the default problems, judges all of them, and prints the share of problems
that k samples solve by the unbiased estimate, beside what a majority vote over all samples solves.
"""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from tts_decode import SamplingParams, TreeDecoder
from tts_decode.default_model import DEFAULT_MODEL
from tts_decode.model.loading import load_model
from tts_decode.search import repeated_sampling
from tts_decode.select import coverage_curve, coverage_fit, wilson_interval
from tts_decode.tasks import Task, default_tasks


def judged(decoder: TreeDecoder, task: Task, n: int, sampling: SamplingParams) -> tuple[int, bool]:
    """How many of `n` samples are right, and whether their vote is."""

    async def search() -> tuple[int, bool]:
        root = await decoder.root([{"role": "user", "content": task.prompt}], sampling)
        result = await repeated_sampling(root, max_samples=n, parallel=n)
        root.release()
        assert task.verify is not None
        return sum(task.verify(c.text) == 1 for c in result.candidates), task.verify(result.answer) == 1

    return decoder.run(search())


def main(
    n: Annotated[int, typer.Option(help="Samples of each problem.")] = 64,
    problems: int = 24,
    temperature: float = 0.8,
    max_tokens: int = 64,
    model: str = DEFAULT_MODEL,
) -> None:
    """Print coverage by the number of samples, with 95 % intervals over the problems at the last one."""
    decoder = TreeDecoder(*load_model(model))
    sampling = SamplingParams(temperature, max_tokens=max_tokens, max_step_tokens=max_tokens)
    outcomes = [judged(decoder, task, n, sampling) for task in default_tasks(problems)]
    counts = [(n, right) for right, _ in outcomes]
    ks = [2**i for i in range(n.bit_length()) if 2**i <= n]
    coverage = coverage_curve(counts, ks)
    table = Table("samples", title=f"{problems} problems, temperature {temperature:g}: solved by any of k")
    table.add_column("coverage", justify="right")
    for k, share in zip(ks, coverage, strict=True):
        table.add_row(str(k), f"{share:.1%}")
    console = Console()
    console.print(table)
    solved = wilson_interval(sum(right > 0 for _, right in counts), problems)
    console.print(f"any of {n}: {solved.value:.1%} ({solved.low:.1%} to {solved.high:.1%})")
    console.print(f"vote of {n}: {sum(vote for _, vote in outcomes)} of {problems}")
    inside = [(k, share) for k, share in zip(ks, coverage, strict=True) if 0 < share < 1]
    if len(inside) > 1:
        a, b = coverage_fit(*zip(*inside, strict=True))
        console.print(f"fitted: coverage = exp({a:.3g} k ** {b:.3g})")


if __name__ == "__main__":
    typer.run(main)
