"""The report on a quantised model: Markdown tables of memory and prefill, and ratios."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

Record = dict[str, Any]
OURS = "ours"


def _rows(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def memory_table(about: Mapping[str, Record], file_bytes: int) -> str:
    """Returns the table of resident memory after loading, and its growth as a share of the file.

    The total includes the pages of mapped files.
    """
    rows = []
    for name, told in about.items():
        memory = told["memory"]
        shares = [(memory[key] - memory["before"]) / file_bytes for key in ("loaded", "peak")]
        sizes = [f"{memory[key] / 2**20:.0f}" for key in ("loaded", "mapped", "before")]
        rows.append([name, *sizes, *(f"{share:.2f}" for share in shares), f"{told['load_seconds']:.1f}"])
    head = ["setting", "resident, MiB", "of it mapped", "before loading"]
    return _rows([*head, "growth / file", "peak growth / file", "loading, s"], rows)


def prefill_table(prefills: Sequence[Record], length: int) -> str:
    """Returns the table of each setting's seconds, medians over its rounds."""
    mine = [r for r in prefills if r["prompt"] == length]
    return _rows(
        ["setting", f"prefill of {length:,} tokens, s"],
        [[r["setting"], f"{statistics.median(r['seconds']):.2f}"] for r in mine],
    )


def ratios(records: Sequence[Record], prompt: int) -> dict[int, float]:
    """Returns our tokens/s divided by the best other engine's, by the number of branches."""
    found = {}
    for branches in sorted({r["branches"] for r in records if r["prompt"] == prompt}):
        speeds = {
            r["engine"]: r["tokens_per_second"]
            for r in records
            if (r["prompt"], r["branches"]) == (prompt, branches)
        }
        if OURS in speeds and len(speeds) > 1:
            found[branches] = speeds.pop(OURS) / max(speeds.values())
    return found


def stream_shares(
    records: Sequence[Record], prompt: int, step_bytes: int, stream: Sequence[float]
) -> dict[str, float]:
    """Returns the weight bytes per second read by each engine's single branch, as a share of the stream."""
    rate = statistics.median(stream)
    return {
        r["engine"]: r["tokens_per_second"] * step_bytes / rate
        for r in records
        if (r["prompt"], r["branches"]) == (prompt, 1)
    }
