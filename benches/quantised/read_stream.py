"""Measures a machine's peak read rate from memory: plain vector loads, in C, with decoding's thread count.

Sums of numpy and torch cannot measure it: their arithmetic limits them.
"""

from __future__ import annotations

import ctypes
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np

SOURCE = Path(__file__).with_name("read_stream.c")
BYTES = 1 << 30  # far more than any cache holds
PASSES = 5


class ReadStream:
    """Compiles the loop with the system's compiler, `CC` or cc, and holds the memory that it reads."""

    def __init__(self, threads: int, size: int = BYTES) -> None:
        self._threads = threads
        with tempfile.TemporaryDirectory() as folder:
            library = Path(folder, "read_stream.so")
            command = [os.environ.get("CC", "cc"), "-O3", "-march=native", "-shared", "-fPIC", "-pthread"]
            subprocess.run([*command, "-o", library, SOURCE], check=True)
            self._read = ctypes.CDLL(str(library)).read_memory
        self._read.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        self._read.restype = ctypes.c_size_t
        self._memory = np.ones(size + 64, np.uint8)  # written, so that each page is there
        self._address = -(-self._memory.ctypes.data // 64) * 64
        self._size = size

    def read(self) -> int:
        """Bytes that were read once."""
        done: int = self._read(self._address, self._size, self._threads)
        return done

    def rate(self) -> float:
        """Bytes a second, median of a few passes."""
        rates = []
        for _ in range(PASSES):
            begin = time.perf_counter()
            done = self.read()
            rates.append(done / (time.perf_counter() - begin))
        return statistics.median(rates)
