"""Starts the ranks of `mesh_worker.py`, and collects their results."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

_WORKER = Path(__file__).parent / "mesh_worker.py"
_SECONDS = 240  # of a loaded machine


class Ended(NamedTuple):
    """codes, errors: of each rank; "" where it raised none. found: of the leader, by case."""

    codes: list[int]
    errors: list[str]
    found: dict[str, Any]


def run_ranks(size: int, folder: Path, *cases: str, **environment: str) -> Ended:
    """All have ended when it returns."""
    folder.mkdir(exist_ok=True)
    known = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"} | environment
    ranks = [
        subprocess.Popen([sys.executable, _WORKER, str(rank), str(size), folder, *cases], env=known)
        for rank in range(size)
    ]
    try:
        codes = [rank.wait(_SECONDS) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    errors = [folder / f"error-{rank}.txt" for rank in range(size)]
    results = folder / "results.json"
    return Ended(
        codes,
        [file.read_text() if file.exists() else "" for file in errors],
        json.loads(results.read_text()) if results.exists() else {},
    )
