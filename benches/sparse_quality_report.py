"""Tables and plots of the results of `benches.sparse_quality`."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

from tts_decode.bench.plots import GREY, styled_pyplot

Record = dict[str, Any]
JUDGES = ("oracle", "quarters", "mean", "minmax", "window")
COLOURS = {
    "oracle": "#808080",
    "mean": "#1f8fd6",
    "minmax": "#e07b20",
    "quarters": "#2a9d5c",
    "window": "#b05fc4",
}


def tables(results: Record) -> str:
    """Markdown."""
    return "\n\n".join([_recall(results), _quality(results), _sharing(results), _int8(results)])


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = list(head)
    rule = "|---" * len(head) + "|"
    return "\n".join([f"| {' | '.join(head)} |", rule, *(f"| {' | '.join(row)} |" for row in rows)])


def _recall(results: Record) -> str:
    found = {
        (r["length"], r["budget"], r["judge"]): r["recall"]
        for r in results["recall"]
        if r["layers"] == "sparse"
    }
    keys = dict.fromkeys((length, budget) for length, budget, _ in found)
    return _table(
        ["tokens", "budget", *JUDGES],
        ([f"{n:,}", budget, *(f"{found[n, budget, judge]:.1%}" for judge in JUDGES)] for n, budget in keys),
    )


def _quality(results: Record) -> str:
    """Each cell: next tokens that agree with dense, KL divergence from it, perplexity over that of dense."""
    base = results["rule"]["dense_layers"]
    cells: dict[Any, dict[Any, str]] = {}
    for r in results["quality"]:
        row = r["length"], r["passage"], r["budget"], r["dense_layers"]
        rise = r["perplexity"] / r["dense_perplexity"]
        text = f"{r['agreement']:.1%}, {r['kl']:.3f}, x {rise:.2f}"
        cells.setdefault((*row, r["dense_perplexity"]), {})[r["judge"]] = text
    return _table(
        ["tokens", "passage", "budget", "dense layers", "dense perplexity", *JUDGES],
        (
            [
                f"{length:,}",
                passage,
                budget,
                str(layers),
                f"{dense:.2f}",
                *(found.get(judge, "") for judge in JUDGES),
            ]
            for (length, passage, budget, layers, dense), found in sorted(
                cells.items(),
                key=lambda cell: (cell[0][3] != base, cell[0][1], cell[0][0], -_share(cell[0][2])),
            )
        ),
    )


def _share(budget: str) -> float:
    return float(Fraction(budget))


def _sharing(results: Record) -> str:
    """Each cell: recall, and the distinct pages of the prompt that all branches read."""
    cells: dict[Any, dict[str, str]] = {}
    for r in results["share"]:
        row = r["summaries"], r["budget"], r["pages_of_one"]
        cells.setdefault(row, {})[r["share"]] = f"{r['recall']:.1%}, {r['pages_of_all']:.1f}"
    shares = ("branch", "siblings", "tree")
    return _table(
        ["summaries", "budget", "prompt pages of a branch", *shares],
        ([*row[:2], f"{row[2]:.1f}", *(found[share] for share in shares)] for row, found in cells.items()),
    )


def _int8(results: Record) -> str:
    return _table(
        ["tokens", "attention error", "agreement", "KL", "perplexity", "float pages"],
        (
            [
                f"{r['length']:,}",
                f"{r['attention_error']:.2%}",
                f"{r['agreement']:.1%}",
                f"{r['kl']:.5f}",
                f"{r['perplexity']:.3f}",
                f"{r['dense_perplexity']:.3f}",
            ]
            for r in results["int8"]
        ),
    )


def plots(results: Record, folder: Path) -> None:
    """sparse_recall.svg, recall against the budget at each length; sparse_divergence.svg, next tokens'."""
    pyplot = styled_pyplot()
    folder.mkdir(parents=True, exist_ok=True)
    lengths = sorted({r["length"] for r in results["recall"]})
    budgets = list(dict.fromkeys(r["budget"] for r in results["recall"]))[::-1]

    def figure(name: str, label: str, lines: dict[str, Any], scale: str) -> None:
        """lines: of each name the values by (length, budget)."""
        drawn, axes = pyplot.subplots(1, len(lengths), figsize=(7.5, 2.6), sharey=True, squeeze=False)
        for axis, length in zip(axes[0], lengths, strict=True):
            for line, values in lines.items():
                style = {"color": COLOURS[line], "linestyle": "--" if line == "oracle" else "-"}
                axis.plot(
                    budgets, [values[length, b] for b in budgets], marker="o", ms=3, label=line, **style
                )
            axis.set_title(f"{length:,} tokens", fontsize=9)
            axis.grid(color=GREY, alpha=0.25)
            axis.set_xlabel("budget, share of pages")
        axes[0][0].set_ylabel(label)
        axes[0][0].set_yscale(scale)
        handles = axes[0][0].get_legend_handles_labels()
        drawn.legend(*handles, loc="upper center", ncols=len(lines), frameon=False, fontsize=8)
        drawn.tight_layout(rect=(0, 0, 1, 0.93))
        drawn.savefig(folder / name, metadata={"Date": None})
        pyplot.close(drawn)

    recall: dict[str, Any] = {judge: {} for judge in JUDGES}
    for r in results["recall"]:
        if r["layers"] == "sparse":
            recall[r["judge"]][r["length"], r["budget"]] = 100 * r["recall"]
    figure("sparse_recall.svg", "attention mass read, %", recall, "linear")
    divergence: dict[str, Any] = {judge: {} for judge in JUDGES}
    for r in results["quality"]:
        if r["dense_layers"] == results["rule"]["dense_layers"] and r["passage"] == "new":
            divergence[r["judge"]][r["length"], r["budget"]] = r["kl"]
    figure("sparse_divergence.svg", "KL divergence from dense", divergence, "log")
