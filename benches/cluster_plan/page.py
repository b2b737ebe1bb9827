"""The tables of docs/scaling.md that are generated from the plan."""

from __future__ import annotations

import statistics
from typing import Any

from benches.cluster_plan.dispatch import RAY_TASKS, dispatched
from benches.markers import fill
from benches.tables import Table, percent

Record = dict[str, Any]

TERMS = {
    "flops": "products",
    "weights": "weights read",
    "kv": "KV read",
    "all_reduce": "all-reduces",
    "streamed": "weights from the host",
}


def filled(text: str, record: Record) -> str:
    """Returns the filled page. Without a check in the record, the page must have no marker for it."""
    plan = record["plan"]
    texts = {
        "cluster": cluster_table(plan["clusters"]),
        "cluster groups": group_table(plan["groups"]),
        "cluster KV": kv_text(plan["kv"], len(record["trees"])),
        "cluster host": host_table(record),
        "cluster dispatch": dispatch_text(record),
    }
    return fill(text, texts | ({"cluster check": check_table(record)} if "check" in record else {}))


def cluster_table(rows: list[Record]) -> str:
    heads = ["H100s", "weights", "groups", "searches at a time", "problems an hour", "with the host's part"]
    heads += ["one search, minutes", "10,000 problems, hours", "largest term"]
    return Table(
        heads,
        [
            [
                f"{row['gpus']:,}",
                row["weights"],
                f"{row['groups']:,} of {row['group']}" + (", streamed" if row["streamed"] else ""),
                f"{row['running']:,.0f}",
                figures(row["per_hour"]),
                figures(row["per_hour_with_host"]),
                figures(row["search_seconds"] / 60),
                figures(row["study_hours"]),
                f"{TERMS[row['binds']]}, {percent(row['share'])}",
            ]
            for row in rows
        ],
    ).markdown()


def group_table(rows: list[Record]) -> str:
    heads = ["weights", "GPUs", "on the host, GB", "room for KV, GB", "searches at a time", "step, ms"]
    heads += [*TERMS.values(), "problems an hour of a GPU", "KV read unshared", "fixed"]
    return Table(
        heads,
        [
            [
                row["weights"],
                str(row["gpus"]),
                figures(row["streamed"] / 1e9),
                figures(row["kv_room"] / 1e9),
                f"{row['running']:.1f}",
                figures(1e3 * row["step"]),
                *[percent(row["terms"][name] / row["step"]) for name in TERMS],
                figures(row["per_hour"] / row["gpus"]),
                f"{row['per_hour_unshared'] / row['per_hour']:.2f}x",
                percent(row["fixed"]),
            ]
            for row in rows
        ],
    ).markdown()


def kv_text(kv: Record, searches: int) -> str:
    def gigabytes(name: str) -> str:
        return f"{kv[name] / 1e9:.1f} GB"

    return (
        f"A problem holds {gigabytes('mean')} of KV, averaged over its run, and {gigabytes('peak')} at its "
        f"peak; the largest of {searches} searches peaks at {gigabytes('most')}. If each branch held its own "
        f"path, the peak would be {gigabytes('unshared')}."
    )


def host_table(record: Record) -> str:
    heads = ["rows", "host's part, ms"]
    rows = [[f"{row['rows']:,}", figures(1e3 * row["host"])] for row in record["host"]]
    planned = [
        "weights",
        "GPUs",
        "rows of a step",
        "GPUs' step, ms",
        "host's part, ms",
        "problems an hour left",
    ]
    groups = [
        [
            row["weights"] + (", streamed" if row["streamed"] else ""),
            str(row["gpus"]),
            f"{row['rows']:,.0f}",
            figures(1e3 * row["step"]),
            figures(1e3 * row["host"]),
            percent(row["per_hour_with_host"] / row["per_hour"]),
        ]
        for row in record["plan"]["groups"]
    ]
    return f"{Table(heads, rows).markdown()}\n\n{Table(planned, groups).markdown()}"


def dispatch_text(record: Record) -> str:
    most = max(record["plan"]["clusters"], key=lambda row: float(row["per_hour"]))
    found = dispatched(record["trees"], most["per_hour"])
    return (
        f"Sending a problem takes {found.sent / 1e3:.1f} kB; its result, with the text of every branch, "
        f"{found.returned / 1e3:.0f} kB. {most['gpus']:,} GPUs finish {found.per_second:.1f} problems a "
        f"second: {found.bytes_per_second / 1e6:.1f} MB/s in total, and "
        f"{percent(found.per_second / RAY_TASKS, 1)} of the tasks that Ray can start in a second."
    )


def check_table(record: Record) -> str:
    heads = [
        "prompt, tokens",
        "branches",
        "measured, ms",
        "middle half of rounds",
        "law, ms",
        "law / measured",
    ]
    rows = record["check"]["rows"]
    ratios = [row["predicted"] / row["measured"] for row in rows]
    table = Table(
        heads,
        [
            [
                f"{row['context']:,}",
                str(row["branches"]),
                figures(1e3 * row["measured"]),
                " to ".join(figures(1e3 * value) for value in row["quartiles"]),
                figures(1e3 * row["predicted"]),
                f"{ratio:.2f}",
            ]
            for row, ratio in zip(rows, ratios, strict=True)
        ],
    ).markdown()
    mean = statistics.geometric_mean(ratios)
    worst = max(max(ratio / mean, mean / ratio) for ratio in ratios)
    check = record["check"]
    rates = f"{check['flops'] / 1e9:.0f} GFLOP/s and {check['bandwidth'] / 1e9:.1f} GB/s"
    return (
        f"{table}\n\n{record['machine']}, one thread, {check['dtype']}; rates in the same rounds: "
        f"{rates}. The geometric mean of law / measured is {mean:.2f}; the entry farthest from it is "
        f"off by a factor of {worst:.2f}."
    )


def figures(value: float) -> str:
    """Formats a number with three significant figures, or all digits before the point."""
    if value == 0:
        return "0"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
