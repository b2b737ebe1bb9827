"""The report of a check as Markdown: one table for each thing measured."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from benches.gpu.timing import Ceilings

Record = dict[str, Any]
OURS = ("triton", "cuda")
# Each column of ratios takes the fastest of its methods.
PEERS = {
    "FlashInfer decode": ("flashinfer decode", "flashinfer decode, tensor cores"),
    "FlashInfer cascade": ("flashinfer cascade",),
    "FlexAttention": ("flex_attention",),
    "SDPA": ("sdpa, replicated",),
}
COLUMNS = ["heads", "tree (nodes / tokens)", "unique KV, MB", "floor, us", "ours, us", "of the roofline"]
COLUMNS += [f"x {peer}" for peer in PEERS]
DETAILS = [*COLUMNS[:2], "warm L2, us", "in a graph, us", "GB/s", "TFLOP/s", "plan, us", "next plan, us"]


def table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    columns = list(columns)
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def fastest(entry: Record, names: Iterable[str], when: str = "cold") -> str | None:
    methods = entry["methods"]
    timed = [name for name in names if when in methods.get(name, {})]
    return min(timed, key=lambda name: methods[name][when][1], default=None)


def spread(quartiles: list[float]) -> str:
    """Median in microseconds and half the distance of the quartiles."""
    low, median, high = quartiles
    return f"{median * 1e6:.1f} ± {(high - low) / 2 * 1e6:.1f}"


def attention_row(entry: Record, ceilings: Ceilings | None) -> list[str]:
    """Cells of COLUMNS."""
    methods, ours = entry["methods"], fastest(entry, OURS)
    seconds = methods[ours]["cold"][1] if ours else None
    floor = ceilings.floor(entry["min_bytes"], entry["flops"]) if ceilings else None
    row = [entry["heads"], entry["tree"], f"{entry['kv_bytes'] / 1e6:.1f}"]
    row.append(f"{floor * 1e6:.1f}" if floor else "")
    row.append(f"{spread(methods[ours]['cold'])} ({ours})" if ours else "failed")
    row.append(f"{floor / seconds:.0%}" if floor and seconds else "")
    for names in PEERS.values():
        peer = fastest(entry, names)
        row.append(f"{methods[peer]['cold'][1] / seconds:.2f}" if peer and seconds else "")
    return row


def detail_row(entry: Record) -> list[str]:
    """Cells of DETAILS."""
    methods, ours = entry["methods"], fastest(entry, OURS)
    row = [entry["heads"], entry["tree"]]
    if ours:
        seconds, graph = methods[ours]["cold"][1], fastest(entry, [f"{ours} graph"])
        row += [spread(methods[ours]["warm"]), spread(methods[graph]["cold"]) if graph else ""]
        row += [f"{entry['min_bytes'] / seconds / 1e9:.0f}", f"{entry['flops'] / seconds / 1e12:.1f}"]
    else:
        row += [""] * 4
    return row + [f"{entry['plan'][name][1] * 1e6:.0f}" for name in ("full", "incremental")]


def left_out(entries: list[Record]) -> str:
    """Which methods were left out, with their reasons and where."""
    where: dict[tuple[str, str], list[str]] = {}
    for entry in entries:
        for name, method in entry["methods"].items():
            if "left_out" in method:
                where.setdefault((name, method["left_out"]), []).append(f"{entry['heads']} `{entry['tree']}`")
    lines = []
    for (name, reason), places in where.items():
        on = "every entry" if len(places) == len(entries) else ", ".join(places)
        lines.append(f"* {name}, on {on}: {reason}")
    return "\n".join(lines)


def errors(entries: list[Record]) -> str:
    """The largest relative error of every method."""
    largest: dict[str, float] = {}
    for entry in entries:
        for name, method in entry["methods"].items():
            if "error" in method:
                # NaN compares false both ways: it must win.
                worst = largest.get(name, 0.0)
                largest[name] = worst if method["error"] <= worst else method["error"]
    return ", ".join(f"{name} {error:.1e}" for name, error in largest.items())


def kv_row(record: Record, op: str) -> list[str]:
    entry = record["ops"][op]
    cold, warm = entry["cold"], entry["warm"]
    rate = f"{entry['bytes'] / cold[1] / 1e9:.0f}"
    return [op, record["backend"], f"{entry['bytes'] / 1e6:.1f}", spread(cold), spread(warm), rate]


def sparse_rows(record: Record) -> list[list[str]]:
    """Each method's time, and how many times that of the whole sparse step it is."""
    methods = record["methods"]
    step = methods["sparse"]["cold"][1]
    return [
        [f"`{record['tree']}`", name, spread(times["cold"]), f"{times['cold'][1] / step:.2f}"]
        for name, times in methods.items()
    ]


def markdown(report: Record) -> str:
    """report: machine (name -> text), phases (list of records), results (records of the benchmarks)."""
    results: list[Record] = report["results"]
    by_kind = {kind: [r for r in results if r["kind"] == kind and "failed" not in r] for kind in KINDS}
    parts = ["# GPU check", table(["machine", ""], [[k, v] for k, v in report["machine"].items()])]
    rows = [[p["name"], p["outcome"], f"{p['seconds']:.0f}", p["summary"]] for p in report["phases"]]
    parts.append(table(["phase", "outcome", "seconds", ""], rows))
    measured = None
    for record in by_kind["ceilings"]:
        measured = Ceilings(record["bandwidth"], record["rate"])
        parts.append(
            f"Ceilings: {measured.bandwidth / 1e9:.0f} GB/s copied on the device (read and written), "
            f"{measured.rate / 1e12:.0f} TFLOP/s in a bfloat16 product of 8192^3. Floor: the larger of bytes "
            "/ bandwidth and flops / rate, every key, value, query and output counted once."
        )
    if entries := by_kind["attention"]:
        rows = [attention_row(entry, measured) for entry in entries]
        parts += ["## Attention", ATTENTION_NOTE, table(COLUMNS, rows)]
        parts += [DETAIL_NOTE, table(DETAILS, map(detail_row, entries))]
        parts += [
            f"Largest relative errors: {errors(entries)}.",
            "Left out:\n\n" + (left_out(entries) or "none"),
        ]
    if sparse := by_kind["sparse"]:
        rows = [row for record in sparse for row in sparse_rows(record)]
        worst = max((record["error"] for record in sparse), key=lambda e: (e != e, e))  # NaN is the worst
        parts += ["## Sparse attention", SPARSE_NOTE, table(["tree", "", "cold L2, us", "x sparse"], rows)]
        parts.append(f"Largest relative error over the chosen pages: {worst:.1e}.")
        missing = {name: why for record in sparse for name, why in record["left_out"].items()}
        parts += [f"Left out: {name}: {why}" for name, why in missing.items()]
    if by_kind["kv_ops"]:
        rows = [kv_row(record, op) for record in by_kind["kv_ops"] for op in record["ops"]]
        right = all(record["right"] for record in by_kind["kv_ops"])
        columns = ["op", "backend", "MB moved", "cold L2, us", "warm L2, us", "GB/s cold"]
        parts += ["## A step of 256 branches", table(columns, rows), f"Results right: {right}."]
    for record in by_kind["graph_step"]:
        parts.append(
            f"Captured step on `{record['tree']}`, heads {record['heads']}: plan and replay take "
            f"{spread(record['host'])} us of the host, which never waited for the device; bitwise as an "
            f"eager call: {record['equals_eager']}."
        )
    parts += [f"Failed: {r['kind']} {r.get('tree', '')}: {r['failed']}" for r in results if "failed" in r]
    return "\n\n".join(parts) + "\n"


KINDS = ("ceilings", "graph_step", "sparse", "kv_ops", "attention")
ATTENTION_NOTE = (
    "One layer, head_dim 128, bfloat16, pages of 16 tokens that all methods share. Times are medians of "
    "interleaved rounds with a cold L2, ± half the distance of the quartiles. Ratios above 1 mean that the "
    "other takes longer; of several variants the fastest counts."
)
SPARSE_NOTE = (
    "Means of pages, one page in eight read by each branch for each KV head. `sparse` is `score_pages`, "
    "`select_top_pages` and `tree_attention` one after the other, as a layer of a step has them; then each "
    "alone. `dense` is our dense kernel in Triton."
)
DETAIL_NOTE = (
    "Warm: right after the same call. GB/s and TFLOP/s: the bytes and flops of the floor over the cold time. "
    "The plan is made on the host once for all layers of a step: from nothing, and for the following step."
)
