"""Median seconds of calls that take turns, and a bench's output of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from pytest_benchmark.fixture import BenchmarkFixture
from tts_decode.bench.timing import interleaved

ROUNDS = 9


def medians(calls: Mapping[str, Callable[[], object]], rounds: int = ROUNDS) -> dict[str, float]:
    return {name: quartiles.median for name, quartiles in interleaved(calls, rounds).items()}


def print_info(benchmark: BenchmarkFixture) -> None:
    print("\n" + ", ".join(f"{name} {value}" for name, value in benchmark.extra_info.items()))
