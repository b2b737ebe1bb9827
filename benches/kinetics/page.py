"""The tables of docs/kinetics.md."""

from __future__ import annotations

import math
from typing import Any

from benches.kinetics.scripted import (
    CHAINS,
    DENSE_CHAINS,
    DENSE_SAMPLES,
    SAMPLES,
    SHAPES,
    accuracy,
    eflops,
    tokens_at_cost,
)
from benches.markers import fill
from benches.tables import line

Record = dict[str, Any]

SPREADS = (0.5, 1.0, 2.0)
_KEPT = 0.9  # share of the hazards, if sparse attention loses something
_SHOWN = {"chains": (4096, 16384, 32768), "samples": (4096, 16384, 65536)}  # dense tokens


def scripted_record() -> list[Record]:
    """Returns a row for each shape, kind of search and dense size in the table."""
    rows = []
    for name in SHAPES:
        for kind, dense, sparse in (
            ("chains", DENSE_CHAINS, CHAINS),
            ("samples", DENSE_SAMPLES, SAMPLES),
        ):
            for size in dense:
                if size.total not in _SHOWN[kind]:
                    continue
                cost = eflops(name, size, False)
                tokens = tokens_at_cost(name, sparse, cost, sparse=True)
                gains = {
                    f"{spread}": [
                        accuracy(tokens, spread, kept) - accuracy(size.total, spread) for kept in (1.0, _KEPT)
                    ]
                    for spread in SPREADS
                }
                rows.append(
                    {
                        "model": name,
                        "kind": kind,
                        "tokens": size.total,
                        "eflops": cost,
                        "times": tokens / size.total,
                        "gains": gains,
                    }
                )
    return rows


def scripted_table(rows: list[Record]) -> str:
    heads = ["model", "search", "dense tokens", "PFLOP", "sparse tokens"]
    heads += [f"spread {spread:g}" for spread in SPREADS]
    lines = [line(heads), "|---|---|---:|---:|---:|" + "---:|" * len(SPREADS)]
    for row in rows:
        cells = [row["model"], "one chain" if row["kind"] == "chains" else "samples of 4,096"]
        cells += [f"{row['tokens']:,}", f"{row['eflops'] / 1e15:.2f}", f"{row['times']:.1f}x"]
        cells += [" / ".join(f"{100 * gain:+.0f}" for gain in row["gains"][f"{s}"]) for s in SPREADS]
        lines.append(line(cells))
    return "\n".join(lines)


def measured_table(kinds: Record) -> str:
    heads = ["search", "size", "dense: solved", "TFLOP", "sparse: solved", "TFLOP", "sparse at equal cost"]
    lines = [line(heads), "|---|---:|---:|---:|---:|---:|---:|"]
    for kind, rows in kinds.items():
        for row in rows:
            dense, sparse = row["dense"], row["sparse"]
            cells = [kind, row["size"], _share(dense), f"{dense['cost']:.2f}", _share(sparse)]
            lines.append(line([*cells, f"{sparse['cost']:.2f}", _points(row["difference"])]))
    return "\n".join(lines)


def filled(text: str, record: Record) -> str:
    """Returns the page with its tables regenerated."""
    return fill(
        text,
        {
            "setting": record["measured"]["setting"],
            "measured": measured_table(record["measured"]["kinds"]),
            "scripted": scripted_table(record["scripted"]),
        },
    )


def _share(side: Record) -> str:
    return f"{side['accuracy']:.0%} ({side['low']:.0%} to {side['high']:.0%})"


def _points(difference: Record | None) -> str:
    if difference is None:
        return ""
    value, low, high = (difference[name] for name in ("value", "low", "high"))
    ends = "" if low is None or math.isnan(low) else f" ({100 * low:+.0f} to {100 * high:+.0f})"
    return f"{100 * value:+.0f}{ends}"
