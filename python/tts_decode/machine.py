"""Measures what a machine does at best: flops of a matrix product, bytes of a read from memory."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

from tts_kernels.cost import Machine

_ROUNDS = 5


def measure_machine(dtype: torch.dtype, device: torch.device) -> Machine:
    """The rates of this machine, in less than two seconds: medians of a few rounds.

    On a CPU the flops are the better of a float32 and a bfloat16 product, as the kernels multiply bfloat16 in
    float32 where there is no instruction for it; elsewhere those of `dtype`. The read is far larger than any
    cache.
    """
    on_gpu = device.type == "cuda"
    size, read_bytes = (8192, 1 << 30) if on_gpu else (1024, 1 << 28)
    dtypes = {dtype} if on_gpu else {torch.float32, dtype}
    factors = [torch.randn((size, size), device=device).to(kind) for kind in dtypes]
    memory = torch.ones(read_bytes // 4, device=device)
    product = min(_seconds(lambda m=m: m @ m, device) for m in factors)  # type: ignore[misc]
    return Machine(2 * size**3 / product, memory.nbytes / _seconds(memory.sum, device))


def _seconds(call: Callable[[], object], device: torch.device) -> float:
    """Median seconds of a call, after one to warm up."""
    rounds = []
    for _ in range(_ROUNDS + 1):
        begin = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        rounds.append(time.perf_counter() - begin)
    return statistics.median(rounds[1:])
