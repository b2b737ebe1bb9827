"""The tables of docs/ets.md, generated from the figures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from tts_decode.select import Interval

from benches.ets_claims.figures import BASE, MEASURES, NODE, TOKEN
from benches.ets_claims.price import MOST_LOSS
from benches.ets_claims.searches import SIDE_BY_SIDE
from benches.tables import line

Record = dict[str, Any]

PAPER = {"kv": 1.8, "throughput": 1.4}  # printed by arXiv 2502.13575, its abstract


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
    """Compares ETS with a price per node with REBASE: measured, predicted by the law, and from the paper."""

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
            f"The middle 80 % of the steps, from the first to the last, have {lengths} tokens.",
            f"Problems have a mean value of {share:.2f}; s is {spreads} from the first step on;",
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
        "largest price with a loss under 2 points",
        "KV by sum, less",
    ]
    return _table(head, cells)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(map(line, [head, ["---"] * len(head), *rows]))


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
                    *[_x(told["less"][measure]) for measure in MEASURES],
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
