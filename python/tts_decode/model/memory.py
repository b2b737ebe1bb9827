"""Refuses models that do not fit into memory before they are loaded."""

from __future__ import annotations

from pathlib import Path

from tts_kernels.machine_memory import memory_bytes

from ..errors import ModelLoadError


def refuse_beyond_memory(name: Path | str, needed: int) -> None:
    """Raises ModelLoadError if weights of `needed` bytes exceed the memory that the process may use."""
    there = memory_bytes()
    if needed > there:
        raise ModelLoadError(
            f"model: {name} takes {needed / 1e9:.2f} GB of memory for its weights, and the machine, or the "
            f"container, has {there / 1e9:.2f} GB; take a smaller model, or a file with fewer bits a weight"
        )
