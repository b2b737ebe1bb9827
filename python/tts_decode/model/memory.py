"""Models that the machine's memory does not hold, refused before they are loaded."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import ModelLoadError


def refuse_beyond_memory(name: Path | str, needed: int) -> None:
    """Raises ModelLoadError where weights of so many bytes do not fit into the machine's memory."""
    there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > there:
        raise ModelLoadError(
            f"model: {name} takes {needed / 1e9:.2f} GB of memory for its weights, and the machine has "
            f"{there / 1e9:.2f} GB; take a smaller model, or a file with fewer bits a weight"
        )
