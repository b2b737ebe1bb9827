"""Compares `SearchPool` with one process, and runs a thousand searches while actors are killed.

    python -m benches.ray_pool [throughput] [kills] [--json FILE]

throughput: the same searches on the default model alternate between this process with two threads, one actor
with two cores, and two actors with one core each; models are loaded before. kills: a tiny random model runs
on two nodes, and three actors are killed at random moments; every search must end once, with the same text as
in this process. Both need two cores, and other load on the machine affects them.
"""

from __future__ import annotations

import os

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as of the command and of actors; before torch is loaded

import argparse
import asyncio
import json
import random
import signal
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from tts_decode import SamplingParams, TreeDecoder
from tts_decode.cli.machine import device_name
from tts_decode.cluster import PooledSearch, SearchPool
from tts_decode.rewards import mean_probability
from tts_decode.search import SearchResult, rebase
from tts_decode.tasks import default_tasks

from .local_cluster import local_cluster
from .tiny_decoder import tiny_decoder

_RESULTS = Path(__file__).parent / "results" / "ray_pool.json"
_IN_FLIGHT = 4
_KILLS = 3


class _Here:
    """The host of searches in this process."""

    journal = None

    def __init__(self, decoder: TreeDecoder) -> None:
        self.decoder = decoder

    def keep(self, root: object) -> None:
        """Nothing is kept, as by a pool with pinned_prompts=0."""


def in_process(decoder: TreeDecoder, works: Sequence[PooledSearch]) -> list[SearchResult]:
    async def all_of_them() -> list[SearchResult]:
        slots = asyncio.Semaphore(_IN_FLIGHT)

        async def one(work: PooledSearch) -> SearchResult:
            async with slots:
                return await work(_Here(decoder))

        return await asyncio.gather(*map(one, works))

    return decoder.run(all_of_them())


def on_pool(pool: SearchPool, works: Sequence[PooledSearch]) -> list[SearchResult]:
    return [future.result().result() for future in [pool.submit(work) for work in works]]


def texts(results: Sequence[SearchResult]) -> list[list[str]]:
    return [[node.text for node in result.tree] for result in results]


def throughput(problems: int, rounds: int) -> dict[str, Any]:
    """Tokens a second of each way, and the ratio to one process in the same round."""
    sampling = SamplingParams(temperature=0.8, stop=("\n",), max_tokens=64, max_step_tokens=32)
    works = [
        PooledSearch(
            [{"role": "user", "content": task.prompt}], rebase, {"n": 8}, sampling, scorer=mean_probability()
        )
        for task in default_tasks(problems)
    ]
    torch.set_num_threads(2)
    decoder = TreeDecoder.from_pretrained()
    options: dict[str, Any] = {"address": "auto", "in_flight": _IN_FLIGHT, "pinned_prompts": 0}
    with (
        local_cluster(4),
        SearchPool(TreeDecoder.from_pretrained, actors=1, cpus=2, **options) as one,
        SearchPool(TreeDecoder.from_pretrained, actors=2, cpus=1, **options) as two,
    ):
        ways: dict[str, Callable[[Sequence[PooledSearch]], list[SearchResult]]] = {
            "one process, 2 threads": lambda works: in_process(decoder, works),
            "one actor of 2 cores": lambda works: on_pool(one, works),
            "two actors of 1 core": lambda works: on_pool(two, works),
        }
        while two.stats().actors < 2:
            time.sleep(0.1)
        speeds: dict[str, list[float]] = {name: [] for name in ways}
        found: dict[str, list[list[str]]] = {}
        for run in ways.values():
            run(works[:_IN_FLIGHT])  # what first uses cost
        for number in range(rounds):
            order = list(ways)
            for name in order[number % 3 :] + order[: number % 3]:
                began = time.perf_counter()
                results = ways[name](works)
                seconds = time.perf_counter() - began
                speeds[name].append(sum(result.stats.generated_tokens for result in results) / seconds)
                found[name] = texts(results)
    base, *_ = speeds.values()
    return {
        "model": "SmolLM2-135M-Instruct",
        "dtype": str(decoder.model.dtype).removeprefix("torch."),
        "strategy": "rebase, n = 8",
        "problems": problems,
        "rounds": rounds,
        "in_flight": _IN_FLIGHT,
        "tokens_per_second": {name: [round(speed, 1) for speed in all_of] for name, all_of in speeds.items()},
        "median_ratio_to_one_process": {
            name: round(statistics.median(a / b for a, b in zip(all_of, base, strict=True)), 3)
            for name, all_of in speeds.items()
        },
        "same_texts": all(one == next(iter(found.values())) for one in found.values()),
    }


def kills(problems: int, seed: int) -> dict[str, Any]:
    """Kills three actors when random shares of the searches have ended."""
    works = [
        PooledSearch(
            f"Problem {i}: {'step ' * (i % 7)}",
            rebase,
            {"n": 3},
            SamplingParams(seed=i, max_tokens=24, max_step_tokens=6),
            scorer=mean_probability(),
        )
        for i in range(problems)
    ]
    torch.set_num_threads(1)
    began = time.perf_counter()
    expected = texts(in_process(tiny_decoder(), works))
    alone = time.perf_counter() - began
    draw = random.Random(seed)
    moments = sorted(draw.sample(range(problems // 20, problems * 9 // 10), _KILLS))
    counts = [0] * problems
    found: list[list[str] | None] = [None] * problems
    with local_cluster(1, 1), SearchPool(tiny_decoder, address="auto", in_flight=8) as pool:
        index = {id(work): i for i, work in enumerate(works)}
        began = time.perf_counter()
        killed, deaths, actors = 0, 0, set()
        for ended in pool.results(works):
            i = index[id(ended.work)]
            counts[i] += 1
            found[i] = [node.text for node in ended.result().tree]
            deaths += ended.deaths > 0
            actors.add(ended.actor)
            if killed < _KILLS and sum(counts) >= moments[killed]:
                os.kill(draw.choice(pool.ask(_process)), signal.SIGKILL)
                killed += 1
        seconds = time.perf_counter() - began
        lost = pool.stats().lost
    return {
        "problems": problems,
        "killed_after": moments,
        "actors_killed": killed,
        "actors_lost": lost,
        "actors_seen": len(actors),
        "searches_run_again": deaths,
        "each_once": counts == [1] * problems,
        "other_texts": sum(one != other for one, other in zip(found, expected, strict=True)),
        "same_texts": found == expected,
        "seconds": round(seconds, 1),
        "seconds_of_one_process_of_one_thread": round(alone, 1),
    }


def _process(decoder: TreeDecoder) -> int:
    return os.getpid()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", default=["throughput", "kills"])
    parser.add_argument("--problems", type=int, help="default: 16 for throughput, 1,000 for kills")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, default=_RESULTS)
    given = parser.parse_args()
    done: dict[str, Any] = json.loads(given.json.read_text()) if given.json.exists() else {}
    for part in given.parts:
        if part == "throughput":
            measured = throughput(given.problems or 16, given.rounds)
        elif part == "kills":
            measured = kills(given.problems or 1000, given.seed)
        else:
            parser.error(f"got {part}, expected throughput or kills")
        done[part] = measured | {"machine": device_name("cpu"), "ray": _ray_version()}
        print(json.dumps({part: done[part]}, indent=2))
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps(done, indent=2) + "\n")
    wrong = [part for part, told in done.items() if not told["same_texts"] or not told.get("each_once", True)]
    if wrong:
        raise SystemExit(f"{', '.join(wrong)}: texts differ, or a search did not end once")


def _ray_version() -> str:
    import ray

    version: str = ray.__version__
    return version


if __name__ == "__main__":
    main()
