"""Measures times on the GPU by CUDA events, cold and warm, and the two ceilings of the machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch
from tts_decode.bench.timing import Quartiles, quartiles

# Written before every measurement: many times the L2 of any GPU, so that nothing of the call is left in it,
# and some 0.7 ms of work at 3 TB/s, in which the host enqueues the call so that its own time does not show.
FLUSH_BYTES = 2 << 30


class Ceilings(NamedTuple):
    """bandwidth: bytes/s of a copy on the device, read and written. rate: flop/s of a bfloat16 product."""

    bandwidth: float
    rate: float

    def floor(self, num_bytes: int, flops: int) -> float:
        """Seconds that no call can undercut: max(bytes / bandwidth, flops / rate)."""
        return max(num_bytes / self.bandwidth, flops / self.rate)


class Times(NamedTuple):
    """cold: nothing in L2. warm: right after the same call."""

    cold: Quartiles
    warm: Quartiles


def measure(calls: Mapping[str, Callable[[], object]], rounds: int = 15) -> dict[str, Times]:
    """Times of each call, all in turn round by round, so that clocks and other load hit all alike."""
    flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device="cuda")
    for call in calls.values():
        call()
        call()
    events = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            marks = [torch.cuda.Event(enable_timing=True) for _ in range(3)]
            flush.zero_()
            marks[0].record()
            call()
            marks[1].record()
            call()
            marks[2].record()
            events[name].append(marks)
        torch.cuda.synchronize()
    return {
        name: Times(
            quartiles([a.elapsed_time(b) * 1e-3 for a, b, _ in marks]),
            quartiles([b.elapsed_time(c) * 1e-3 for _, b, c in marks]),
        )
        for name, marks in events.items()
    }


def host_seconds(call: Callable[[int], object], rounds: int) -> Quartiles:
    """What call(round) takes of the host's time; the device is idle at its beginning."""
    seconds = []
    for round_ in range(rounds):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        call(round_)
        seconds.append(time.perf_counter() - begin)
    return quartiles(seconds)


@contextmanager
def no_host_sync() -> Iterator[None]:
    """Whatever makes the host wait for the device raises RuntimeError."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def ceilings(n: int = 8192, copied: int = 4 << 30) -> Ceilings:
    source = torch.randint(0, 255, (copied,), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    # Random: zeros draw less power and run faster than any real data.
    a, b = torch.randn((2, n, n), dtype=torch.bfloat16, device="cuda")
    times = measure({"copy": lambda: target.copy_(source), "product": lambda: a @ b})
    return Ceilings(2 * copied / times["copy"].cold.median, 2 * n**3 / times["product"].cold.median)
