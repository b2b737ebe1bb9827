"""Runs of the default model: best-of-n after a long prompt, and long chains, dense and sparse.

Each is a command that a reader can run. `tts-decode plot FOLDER --x eflops` draws its results.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tts_decode.cli.saving import read_run
from tts_decode.plots import MEASURES, Point, SavedRun, at_equal_cost, lines_of

_SHOTS = 60  # some 2,600 tokens of prompt, all shared
_WIDTHS = (1, 2, 4, 8, 16)
_CHAINS = (64, 128, 256, 512, 1024)
_SPARSE = ("--sparse", "1/8", "--sparse-min-pages", "4")
_BOXED = "final_answer=\n\nFinal answer: \\boxed{"


def commands(folder: Path, problems: int) -> Iterator[list[str]]:
    """Arguments of tts-decode. Chains judge their own tokens too: nothing else of them is long."""
    common = ["--limit", str(problems), "--parallel", str(problems), "--resume", *_SPARSE]
    for n in _WIDTHS:
        # The task's own check chooses among n samples, so accuracy is the share of problems that any solves.
        width = ["-s", "best_of_n", "--scorer", "verifier", "-o", f"n={n}"]
        yield ["compare", *width, "--shots", str(_SHOTS), *common, "--save", str(folder / f"samples/{n}")]
    chain = ["-s", "budget_forcing", "-o", "n=1", "-o", "num_ignore=1000", "-o", "end_of_thinking="]
    chain += ["-o", _BOXED, "--stop-when", "closed_boxed", "--no-sparse-tail", "--stop", "\x1f"]
    for length in _CHAINS:
        limits = ["--max-tokens", str(length), "--max-step-tokens", "4096"]
        yield ["compare", *chain, *limits, *common, "--save", str(folder / f"chains/{length}")]


def run(folder: Path, problems: int) -> None:
    """Runs what is missing; a run that was cut off goes on."""
    for arguments in commands(folder, problems):
        print("tts-decode", " ".join(map(repr, arguments)), file=sys.stderr, flush=True)
        subprocess.run([sys.executable, "-m", "tts_decode", *arguments], check=True, stdout=sys.stderr)


def record(folder: Path) -> dict[str, Any]:
    """Figures of the saved runs: of each kind of search its sizes, dense and sparse, and their difference at
    the dense size's cost where the sparse line reaches it."""
    kinds = {}
    made: list[SavedRun] = []
    for kind in ("samples", "chains"):
        runs = [read_run(path) for path in sorted(folder.glob(f"{kind}/*/*.jsonl"))]
        made += runs
        dense, sparse = sorted(lines_of(runs, MEASURES["eflops"]), key=lambda line: line.sparse or "")
        at_cost = {at.cost: at.difference for at in at_equal_cost(sparse, dense)}
        kinds[kind] = [
            {
                "size": ours.width.partition("=")[2],
                "dense": _figures(ours),
                "sparse": _figures(theirs),
                "difference": found and found.to_dict(),
            }
            for ours, theirs in zip(dense.points, sparse.points, strict=True)
            for found in [at_cost.get(ours.cost.value)]
        ]
    return {"kinds": kinds, "setting": setting(made)}


def setting(runs: Sequence[SavedRun]) -> str:
    """When, on what and with what the runs were made, in a line."""
    dates = sorted({run.made.get("date", "")[:10] for run in runs})
    first = runs[0]
    model = f"{first.settings['model']} in {first.settings['dtype']}"
    machine = first.made.get("machine", "an unnamed machine")
    return f"{dates[-1]}: {model}, {first.problems} of the default problems, {machine}."


def _figures(point: Point) -> dict[str, float | None]:
    accuracy = point.accuracy
    return {
        "accuracy": accuracy.value,
        "low": accuracy.low,
        "high": accuracy.high,
        "cost": point.cost.value,
    }
