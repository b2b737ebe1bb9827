"""Compares KV of ST-BoN with best-of-n: python -m benches.st_bon_kv

Both search the same problems with the same number of samples. A search's dynamic KV is its pages beyond the
prompt's: at the peak, and averaged over the model's forwards. Ends of text are suppressed, so that all
answers have the same length and the saving is a function of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from statistics import median
from typing import Annotated, Any, NamedTuple

import typer
from tts_decode import SamplingParams, TreeDecoder
from tts_decode.default_model import DEFAULT_MODEL
from tts_decode.model.loading import load_model
from tts_decode.rewards import mean_probability
from tts_decode.search import STRATEGIES
from tts_decode.tasks import Task, default_tasks

from benches.tables import Table, percent, tracked

Record = dict[str, Any]


class Held(NamedTuple):
    """Bytes beyond the prompt's."""

    peak: float
    mean: float


def held(decoder: TreeDecoder, name: str, task: Task, n: int, sampling: SamplingParams) -> Held:
    options: dict[str, Any] = {"n": n} | ({"scorer": mean_probability()} if name == "best_of_n" else {})

    async def search() -> Held:
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


def measure(
    *,
    n: int,
    problems: int,
    lengths: Sequence[int],
    temperature: float,
    model: str,
    dtype: str,
    seed: int = 0,
) -> Record:
    """saved: by the length of the answers, of each problem how much less ST-BoN holds on average (`mean`) and
    at the most (`peak`), as shares."""
    decoder = TreeDecoder(*load_model(model, dtype))
    tasks = default_tasks(problems)
    saved: Record = {str(length): {"mean": [], "peak": []} for length in lengths}
    for length, task in tracked([(length, task) for length in lengths for task in tasks], "st_bon_kv"):
        sampling = SamplingParams(
            temperature,
            seed=seed,
            max_tokens=length,
            max_step_tokens=length,
            suppress_token_ids=tuple(decoder.eos_token_ids),
        )
        ours, full = (held(decoder, name, task, n, sampling) for name in ("st_bon", "best_of_n"))
        saved[str(length)]["mean"].append(round(1 - ours.mean / full.mean, 4))
        saved[str(length)]["peak"].append(round(1 - ours.peak / full.peak, 4))
    return {"saved": saved}


def table(figures: Record) -> Table:
    """Medians over the problems."""
    heads = ["tokens of an answer", "mean over the forwards", "peak"]
    rows = [
        [length, percent(median(saved["mean"])), percent(median(saved["peak"]))]
        for length, saved in figures["saved"].items()
    ]
    return Table(heads, rows)


def main(
    n: Annotated[int, typer.Option(help="Samples.")] = 16,
    problems: int = 4,
    lengths: Annotated[str, typer.Option(help="Tokens of each answer, with commas.")] = "64,128,256,512",
    temperature: float = 0.8,
    seed: int = 0,
    model: str = DEFAULT_MODEL,
    dtype: str = "auto",
) -> None:
    """Print how much less KV ST-BoN holds, by the length of the answers: medians over the problems."""
    figures = measure(
        n=n,
        problems=problems,
        lengths=[int(length) for length in lengths.split(",")],
        temperature=temperature,
        model=model,
        dtype=dtype,
        seed=seed,
    )
    table(figures).show(f"{problems} problems, n={n}: dynamic KV, less by")


if __name__ == "__main__":
    typer.run(main)
