"""KV of ST-BoN beside best-of-n: python -m benches.st_bon_kv

Both search the same problems with as many samples. The dynamic KV of a search is that of its pages beyond the
prompt's: at the most, and on average over the forwards of the model. Ends of text are suppressed, so that all
answers have the same length and the saving is seen as a function of it.
"""

from __future__ import annotations

import asyncio
from statistics import median
from typing import Annotated, Any, NamedTuple

import typer
from rich.console import Console
from rich.table import Table
from tts_decode import SamplingParams, TreeDecoder
from tts_decode.default_model import DEFAULT_MODEL
from tts_decode.model.loading import load_model
from tts_decode.rewards import mean_probability
from tts_decode.search import STRATEGIES
from tts_decode.tasks import Task, default_tasks


class Held(NamedTuple):
    """Bytes beyond the prompt's."""

    peak: float
    mean: float


def held(decoder: TreeDecoder, name: str, task: Task, n: int, length: int, temperature: float) -> Held:
    options: dict[str, Any] = {"n": n} | ({"scorer": mean_probability()} if name == "best_of_n" else {})

    async def search() -> Held:
        sampling = SamplingParams(
            temperature,
            max_tokens=length,
            max_step_tokens=length,
            suppress_token_ids=tuple(decoder.eos_token_ids),
        )
        root = await decoder.root([{"role": "user", "content": task.prompt}], sampling)
        stats = decoder.stats()
        prompt, steps, samples = stats.resident_bytes, stats.steps, []
        running = asyncio.ensure_future(STRATEGIES[name](root, **options))
        while not running.done():
            await asyncio.sleep(0)
            if (now := decoder.stats()).steps > steps:
                steps = now.steps
                samples.append(now.resident_bytes - prompt)
        root.release()
        await running
        return Held(max(samples), sum(samples) / len(samples))

    return decoder.run(search())


def main(
    n: Annotated[int, typer.Option(help="Samples.")] = 16,
    problems: int = 4,
    lengths: Annotated[str, typer.Option(help="Tokens of each answer, with commas.")] = "64,128,256,512",
    temperature: float = 0.8,
) -> None:
    """Print how much less KV ST-BoN holds, by the length of the answers: medians over the problems."""
    decoder = TreeDecoder(*load_model(DEFAULT_MODEL))
    tasks = default_tasks(problems)
    table = Table("tokens of an answer", title=f"{problems} problems, n={n}: dynamic KV, less by")
    for heading in ("mean", "peak"):
        table.add_column(heading, justify="right")
    for length in map(int, lengths.split(",")):
        saved = []
        for task in tasks:
            ours, full = (
                held(decoder, name, task, n, length, temperature) for name in ("st_bon", "best_of_n")
            )
            saved.append(Held(1 - ours.peak / full.peak, 1 - ours.mean / full.mean))
        table.add_row(
            str(length), f"{median(s.mean for s in saved):.0%}", f"{median(s.peak for s in saved):.0%}"
        )
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
