"""Memory for results that are large and short-lived."""

from __future__ import annotations

import threading
import weakref

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

MOST_KEPT = 1 << 26  # bytes of a tensor above which its memory is returned to the system


class Buffers:
    """Reuses memory once no tensor refers to it, for any thread.

    malloc may return the memory of the logits to the system and fetch it again at every step: with 64
    branches that costs 3,000 page faults, a tenth of a step.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # Each with the array that the tensors of it keep alive.
        self._kept: list[tuple[npt.NDArray[np.float32], weakref.ref[npt.NDArray[np.float32]]]] = []

    def empty(self, rows: int, columns: int) -> Tensor:
        """Returns uninitialised float32 [rows, columns]."""
        size = rows * columns
        if not 0 < 4 * size <= MOST_KEPT:
            return torch.empty((rows, columns))
        with self._lock:
            memory, kept = None, []
            for known, used in self._kept:
                if used() is not None:
                    kept.append((known, used))
                elif memory is None and len(known) >= size:
                    memory = known
            if memory is None:
                memory = np.empty(size, np.float32)
            part = memory[:size]
            self._kept = [*kept, (memory, weakref.ref(part))]
        return torch.from_numpy(part).view(rows, columns)
