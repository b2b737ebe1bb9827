"""Figures of all parts, and the tables of docs/ets.md made of them."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from tts_decode.select import Interval, geometric_mean_ratio

from benches.ets_claims.fitting import fit
from benches.ets_claims.parts import LAYERS
from benches.ets_claims.price import MOST_LOSS, largest, swept
from benches.ets_claims.record import WIDTH
from benches.ets_claims.searches import SIDE_BY_SIDE, Source, by_threshold

Record = dict[str, Any]
Entries = Sequence[Record]

BASE, NODE, TOKEN = "rebase", "ets, per node", "ets, per token"
THRESHOLDS = (0.2, 0.01, 0.005, 0.002)  # cosine distance of clusters; 0.2 is that of all other tables
PAPER = {"kv": 1.8, "throughput": 1.4}  # printed by arXiv 2502.13575, its abstract
_MEASURES = ("kv_sum", "per_selection", "mean_pages", "peak_pages")


def figures(records: Entries, rollouts: int, entries: Entries) -> Record:
    """All that the tables say, of the entries that belong to these records."""
    count = len(records)
    current = [entry for entry in entries if entry["key"].get("fitted", count) == count]
    told = asdict(fit(records, rollouts))
    told["tokens"] = [[int(cut) for cut in np.percentile(depth, (10, 50, 90))] for depth in told["tokens"]]
    replayed = [_replayed(key, found) for key, found in _grouped(current, "replay", ("problem",))]
    return {
        "problems": count,
        "rolled_out": sum(record["rolled_out"] for record in records),
        "fit": told,
        "replay": replayed,
        "thresholds": _thresholds(by_threshold(Source.of("recorded", records, rollouts), WIDTH, THRESHOLDS)),
        "attention": _attention(current),
        "products": next((e["result"] for e in current if e["part"] == "products"), None),
        "throughput": [entry["key"] | _served(entry["result"]) for entry in _of(current, "throughput")],
        "price": [
            key | {"rows": (rows := swept(blocks)), "largest": largest(rows)}
            for key, blocks in _grouped(current, "price", ("first",))
        ],
    }


def _of(entries: Entries, part: str) -> list[Record]:
    return [entry for entry in entries if entry["part"] == part]


def _grouped(entries: Entries, part: str, inner: tuple[str, ...]) -> Iterable[tuple[Record, list[Record]]]:
    """The results of a part by their keys without the names in `inner`."""
    groups: dict[str, tuple[Record, list[Record]]] = {}
    for entry in _of(entries, part):
        key = {name: value for name, value in entry["key"].items() if name not in inner}
        groups.setdefault(repr(sorted(key.items())), (key, []))[1].append(entry["result"])
    return groups.values()


def _replayed(key: Record, found: Entries) -> Record:
    """Of a set of problems: for each policy what it kept and, for ETS, how many times less than REBASE it
    takes."""
    row: Record = key | {"problems": len(found), "policies": {}}
    for name in (BASE, NODE, TOKEN):
        mine = [result[name] for result in found]
        base = [result[BASE] for result in found]
        told: Record = {
            "kept": sum(r["kept"] for r in mine) / max(sum(r["live"] for r in mine), 1),
            "clusters": sum(r["clusters"] for r in mine) / max(sum(r["live"] for r in mine), 1),
            "voted": statistics.mean(r["voted"] for r in mine),
            "borrowed": sum(r["borrowed"] for r in mine) / sum(r["nodes"] for r in mine),
            "kv_tokens": statistics.mean(r["kv_sum"] for r in mine),
        }
        if name != BASE:
            told["less"] = {
                measure: _ratio([_measure(r, measure) for r in base], [_measure(r, measure) for r in mine])
                for measure in _MEASURES
            }
            told["faster"] = {
                law: {
                    part: _ratio([r["law"][law][part] for r in base], [r["law"][law][part] for r in mine])
                    for part in ("whole", "attention")
                }
                for law in mine[0]["law"]
            }
        row["policies"][name] = told
    return row


def _thresholds(found: Entries) -> list[Record]:
    base = {row["threshold"]: row["kv_sum"] for row in found if row["search"] == BASE}
    return [
        {name: row[name] for name in ("threshold", "search", "clusters", "kept")}
        | {"less": _ratio(base[row["threshold"]], row["kv_sum"])}
        for row in found
        if row["search"] != BASE
    ]


def _measure(result: Record, name: str) -> float:
    if name == "per_selection":
        return max(float(result["kv_sum"]) / max(result["selections"], 1), 1.0)
    return max(float(result[name]), 1.0)  # 0 where all answers ended with their first step


def _ratio(ours: Sequence[float], theirs: Sequence[float]) -> Record:
    return geometric_mean_ratio(ours, theirs).to_dict()


def _attention(entries: Entries) -> list[Record]:
    """By width and heads: REBASE's seconds of attention over ETS's, the steps of a search summed, and the
    same of a whole step by its parts: layers x (attention + products of so many rows)."""
    products = {int(r): t[1] for e in _of(entries, "products") for r, t in e["result"].items()}
    rows = []
    for key, found in _grouped(entries, "attention", ("problem",)):
        row: Record = key | {"problems": len(found), "seconds": {}, "faster": {}, "whole": {}}
        for name in (BASE, NODE, TOKEN):
            sums = [sum(tree[3] for tree in result[name]) for result in found]
            row["seconds"][name] = statistics.mean(sums) / len(found[0][name])
            if name != BASE:
                gains = [
                    sum(tree[3] for tree in result[BASE]) / sum(tree[3] for tree in result[name])
                    for result in found
                ]
                row["faster"][name] = [min(gains), statistics.median(gains), max(gains)]
                row["whole"][name] = _whole(found, name, products.get(key["width"]))
        spreads = [(t[4] - t[2]) / t[3] for result in found for trees in result.values() for t in trees]
        row["spread"] = statistics.median(spreads)
        rows.append(row)
    return rows


def _whole(found: Entries, name: str, products: float | None) -> float | None:
    if products is None:
        return None
    times = {
        policy: sum(LAYERS * (tree[3] + products) for result in found for tree in result[policy])
        for policy in (BASE, name)
    }
    return times[BASE] / times[name]


def _served(result: Record) -> Record:
    """By machine, budget and policy: problems a minute over those of REBASE: least, median, most of the
    sets."""
    gains: Record = {}
    for machine, budgets in result.items():
        for gibibytes, found in budgets.items():
            if found is None:
                continue
            base = [part["per_minute"] for part in found[BASE]]
            cell: Record = {
                "per_minute": statistics.median(base),
                "running": {
                    name: statistics.median(p["running"] for p in parts) for name, parts in found.items()
                },
                "restarts": {name: sum(p["restarts"] for p in parts) for name, parts in found.items()},
            }
            for name in (NODE, TOKEN):
                ratios = [p["per_minute"] / b for p, b in zip(found[name], base, strict=True)]
                cell[name] = [min(ratios), statistics.median(ratios), max(ratios)]
            gains.setdefault(machine, {})[gibibytes] = cell
    return {"gains": gains}


# ---- the page


def fill(page: str, found: Record) -> str:
    """The page with what stands between its marks `<!-- NAME -->` and `<!-- end -->` written anew.

    Raises ValueError where a mark is missing.
    """
    for name, table in tables(found).items():
        mark = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        if not mark.search(page):
            raise ValueError(f"page: got none of the mark <!-- {name} -->, expected it; put it back")
        page = mark.sub(lambda m, table=table: f"{m[1]}\n{table}\n\n{m[2]}", page, count=1)
    return page


def tables(found: Record) -> dict[str, str]:
    return {
        "claims": _claims(found),
        "record": _record(found),
        "validation": _validation(found),
        "thresholds": _threshold_table(found),
        "kv": _kv(found),
        "law": _law(found),
        "attention": _attention_table(found),
        "throughput": _throughput(found),
        "price": _price(found),
        "largest": _largest(found),
    }


_COLUMNS = ((16, "recorded"), (64, "0.75"), (64, "0.85"), (256, "0.75"), (256, "0.85"))


def _claims(found: Record) -> str:
    """ETS with a price per node over REBASE: measured, foreseen by the law, and printed by the paper."""

    def of(part: str) -> dict[tuple[int, str], Record]:
        return {(row["width"], row["scores"]): row for row in found[part] if row.get("longer", 1) == 1}

    kv, served = of("replay"), of("throughput")
    timed = {row["width"]: row for row in found["attention"] if row["heads"] == "32/32/128"}

    def less(measure: str) -> list[str]:
        return [
            _short(kv[c]["policies"][NODE]["less"][measure]["value"]) if c in kv else "" for c in _COLUMNS
        ]

    def law(part: str) -> list[str]:
        name = f"32/32/128 x {SIDE_BY_SIDE}"
        return [
            _short(kv[c]["policies"][NODE]["faster"][name][part]["value"]) if c in kv else ""
            for c in _COLUMNS
        ]

    def clocked(which: str) -> list[str]:
        cells = []
        for width, scores in _COLUMNS:
            row = timed.get(width)
            if row is None or row["scores"] != scores:
                cells.append("")
            else:
                gain = row[which][NODE]
                cells.append("" if gain is None else _short(gain[1] if which == "faster" else gain))
        return cells

    def minutes(machine: str) -> list[str]:
        cells = []
        for column in _COLUMNS:
            gains = served[column]["gains"].get(machine, {}) if column in served else {}
            values = [cell[NODE][1] for cell in gains.values()]
            cells.append(f"{min(values):.2f}x to {max(values):.2f}x" if values else "")
        return cells

    rows = [
        ["KV by the paper's sum, replayed", *less("kv_sum"), f"{PAPER['kv']}x"],
        ["KV pages held, mean, replayed", *less("mean_pages"), ""],
        ["KV pages held, peak, replayed", *less("peak_pages"), ""],
        ["time of attention, measured on the CPU", *clocked("faster"), ""],
        ["time of attention, cost law, H100", *law("attention"), ""],
        ["time of a step, measured parts on the CPU, one search", *clocked("whole"), ""],
        [f"time of a step, cost law, H100, {SIDE_BY_SIDE} searches", *law("whole"), ""],
        ["problems a minute, measured parts on the CPU", *minutes("this CPU, 32/32/128"), ""],
        ["problems a minute, cost law, H100", *minutes("H100, 32/32/128"), f"{PAPER['throughput']}x"],
    ]
    head = ["ETS, a price per node, over REBASE", "width 16, recorded"]
    head += [f"{width}, AUC {auc}" for width, auc in _COLUMNS[1:]]
    return _table([*head, "the paper"], rows)


def _short(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}x"


def _record(found: Record) -> str:
    told = found["fit"]
    lengths = ", ".join(f"{low} to {high} (median {middle})" for low, middle, high in told["tokens"])
    a, b = told["problem_values"]
    spreads = ", ".join(f"{spread:.2f}" for spread in told["spreads"])
    share = a / (a + b)
    return " ".join(
        [
            f"{found['problems']} problems were recorded, with {found['rolled_out']:,} tokens of rollouts.",
            f"Steps have, from the first to the last and in the middle 80 % of them, {lengths} tokens.",
            f"Problems have values of {share:.2f} on average; s is {spreads} from the first step on;",
            f"{told['early']:.1%} of the steps before the last end a branch. Cosines of embeddings are",
            f"{told['alike'][0]:.3f} between siblings, {told['alike'][1]:.3f} between others of a depth.",
        ]
    )


def _points(change: Record) -> str:
    value, low, high = (100 * change[name] for name in ("value", "low", "high"))
    return f"{value:+.1f} ({low:+.1f} to {high:+.1f})"


def _largest(found: Record) -> str:
    cells = []
    for part in found["price"]:
        row = next((row for row in part["rows"] if row["price"] == part["largest"]), None)
        cells.append(
            [
                str(part["width"]),
                _scores(part),
                str(part["rows"][0]["problems"]),
                "none" if row is None else f"{row['price']:g}",
                "" if row is None else _x(row["saved"]),
            ]
        )
    head = [
        "width",
        "scores",
        "problems",
        "largest price up to which the loss is under 2 points",
        "KV by sum, less",
    ]
    return _table(head, cells)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _x(interval: Record | None) -> str:
    if interval is None or interval["value"] is None:
        return ""
    found = Interval(**interval)
    return f"{found.value:.2f}x" + ("" if found.low is None else f" ({found.low:.2f} to {found.high:.2f})")


def _range(values: Sequence[float]) -> str:
    low, middle, high = values
    return f"{middle:.2f}x ({low:.2f} to {high:.2f})"


def _scores(row: Record) -> str:
    told = {"recorded": "8 rollouts, recorded", "rollouts": "8 rollouts, simulated"}
    return told.get(row["scores"], f"AUC {row['scores']}")


def _validation(found: Record) -> str:
    rows = []
    for row in found["replay"]:
        if row["scores"] in ("recorded", "rollouts"):
            for name, told in row["policies"].items():
                less = told.get("less", {})
                rows.append(
                    [
                        _scores(row),
                        name,
                        str(row["problems"]),
                        f"{told['kept']:.0%}",
                        f"{told['clusters']:.2f}" if told["clusters"] else "",
                        f"{told['kv_tokens']:,.0f}",
                        _x(less.get("kv_sum")),
                        f"{told['voted']:.0%}",
                        f"{told['borrowed']:.0%}" if row["scores"] == "recorded" else "",
                    ]
                )
    head = ["scores", "search", "problems", "leaves kept", "clusters a leaf", "KV by sum, tokens", "less"]
    return _table([*head, "right by vote", "steps that stand in"], rows)


def _threshold_table(found: Record) -> str:
    rows = [
        [
            f"{row['threshold']:g}",
            row["search"].removeprefix("ets, "),
            f"{row['clusters']:.2f}",
            f"{row['kept']:.0%}",
            _x(row["less"]),
        ]
        for row in found["thresholds"]
    ]
    return _table(["threshold", "cost", "clusters a leaf", "ETS keeps", "KV by sum"], rows)


def _kv(found: Record) -> str:
    rows = []
    for row in found["replay"]:
        for name in (NODE, TOKEN):
            told = row["policies"][name]
            rows.append(
                [
                    str(row["width"]),
                    _scores(row),
                    f"{row['longer']}x",
                    name.removeprefix("ets, "),
                    f"{row['policies'][BASE]['kept']:.0%}",
                    f"{told['kept']:.0%}",
                    *[_x(told["less"][measure]) for measure in _MEASURES],
                ]
            )
    head = ["width", "scores", "steps", "cost", "REBASE keeps", "ETS keeps", "KV by sum", "per selection"]
    return _table([*head, "pages, mean", "pages, peak"], rows)


def _law(found: Record) -> str:
    rows = []
    for row in found["replay"]:
        faster = row["policies"][NODE]["faster"]
        cells = [
            _x(faster[f"{shape} x {count}"][part])
            for shape in ("32/32/128", "64/8/128")
            for count, part in ((1, "whole"), (SIDE_BY_SIDE, "whole"), (SIDE_BY_SIDE, "attention"))
        ]
        rows.append([str(row["width"]), _scores(row), f"{row['longer']}x", *cells])
    head = ["width", "scores", "steps"]
    for model in ("7B", "70B"):
        head += [f"{model}, one search", f"{model}, 8 searches", f"{model}, their attention"]
    return _table(head, rows)


def _attention_table(found: Record) -> str:
    rows = []
    for row in found["attention"]:
        for name in (NODE, TOKEN):
            whole = row["whole"][name] if row["heads"] == "32/32/128" else None
            rows.append(
                [
                    str(row["width"]),
                    row["heads"],
                    name.removeprefix("ets, "),
                    str(row["problems"]),
                    f"{1e3 * row['seconds'][BASE]:.1f}",
                    f"{1e3 * row['seconds'][name]:.1f}",
                    _range(row["faster"][name]),
                    f"{row['spread']:.0%}",
                    "" if whole is None else f"{whole:.2f}x",
                ]
            )
    head = ["width", "heads", "cost", "problems", "REBASE, ms", "ETS, ms", "attention, less"]
    return _table([*head, "quartiles apart", "whole step, less"], rows)


def _throughput(found: Record) -> str:
    rows = []
    for row in found["throughput"]:
        for machine, budgets in row["gains"].items():
            for gibibytes, cell in budgets.items():
                rows.append(
                    [
                        str(row["width"]),
                        _scores(row),
                        machine,
                        gibibytes,
                        f"{cell['running'][BASE]:.1f}",
                        f"{cell['running'][NODE]:.1f}",
                        f"{cell['per_minute']:.3g}",
                        _range(cell[NODE]),
                        _range(cell[TOKEN]),
                    ]
                )
    head = [
        "width",
        "scores",
        "machine",
        "KV, GiB",
        "REBASE at a time",
        "ETS at a time",
        "REBASE, problems/min",
    ]
    return _table([*head, "ETS per node", "ETS per token"], rows)


def _price(found: Record) -> str:
    rows = []
    for part in found["price"]:
        for row in part["rows"]:
            change = row["change"]
            points = "" if row["price"] == 0 else _points(change)
            rows.append(
                [
                    str(part["width"]),
                    _scores(part),
                    str(row["problems"]),
                    f"{row['price']:g}",
                    f"{row['accuracy']:.1%}",
                    points,
                    "" if row["price"] == 0 else _x(row["saved"]),
                    "yes" if row["price"] and change["low"] > -MOST_LOSS else "",
                ]
            )
    head = [
        "width",
        "scores",
        "problems",
        "lambda_b",
        "right by vote",
        "against REBASE, points",
        "KV by sum, less",
    ]
    return _table([*head, "loses under 2 points"], rows)
