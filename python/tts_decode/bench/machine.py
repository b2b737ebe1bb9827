"""Measures a machine's peak rates: flops of a matrix product, bytes of a read from memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from ..cost.forward import Machine
from .timing import interleaved

PRODUCT_ROWS, READ_BYTES = 1024, 1 << 28  # for a CPU; a GPU needs more to be busy
_ROUNDS = 5


class Peaks:
    """Calls whose times give the rates of the machine, to be timed alongside the calls judged by them.

    On a CPU the flops are the better of a float32 and a bfloat16 product, because the kernels multiply
    bfloat16 in float32 if there is no instruction for it; elsewhere those of `dtype`. The read is far larger
    than any cache.

    calls: by name. They return when the work is done.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        on_gpu = device.type == "cuda"
        self._size, read_bytes = (8192, 1 << 30) if on_gpu else (PRODUCT_ROWS, READ_BYTES)
        memory = torch.ones(read_bytes // 4, device=device)
        self._bytes = memory.nbytes
        self.calls: dict[str, Callable[[], object]] = {"read": _finished(memory.sum, device)}
        for kind in {dtype} if on_gpu else {torch.float32, dtype}:
            factor = torch.randn((self._size, self._size), device=device).to(kind)
            self.calls[f"product, {kind}"] = _finished(lambda m=factor: m @ m, device)  # type: ignore[misc]

    def machine(self, seconds: Mapping[str, float]) -> Machine:
        """Returns the rates, given the seconds of each of `calls`."""
        product = min(seconds[name] for name in self.calls if name != "read")
        return Machine(2 * self._size**3 / product, self._bytes / seconds["read"])


def measure_machine(dtype: torch.dtype, device: torch.device) -> Machine:
    """Returns the rates of this machine, in less than two seconds: medians of a few rounds."""
    peaks = Peaks(dtype, device)
    return peaks.machine({name: times.median for name, times in interleaved(peaks.calls, _ROUNDS).items()})


def _finished(call: Callable[[], object], device: torch.device) -> Callable[[], object]:
    if device.type != "cuda":
        return call

    def finished() -> None:
        call()
        torch.cuda.synchronize(device)

    return finished
