"""Times several calls alternately, so that other load on the machine affects all alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np


class Quartiles(NamedTuple):
    """Seconds."""

    low: float
    median: float
    high: float


def quartiles(seconds: list[float]) -> Quartiles:
    return Quartiles(*(float(value) for value in np.percentile(seconds, [25, 50, 75])))


def interleaved(calls: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, Quartiles]:
    """Returns the seconds of each call, after one warm-up call."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(rounds):
        for name, call in calls.items():
            begin = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - begin)
    return {name: quartiles(values) for name, values in seconds.items()}
