"""Figures of all parts, the source of the tables of docs/ets.md."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from tts_decode.select import geometric_mean_ratio

from benches.ets_claims.fitting import fit
from benches.ets_claims.parts import LAYERS
from benches.ets_claims.price import largest, swept
from benches.ets_claims.record import WIDTH
from benches.ets_claims.searches import Source, by_threshold

Record = dict[str, Any]
Entries = Sequence[Record]

BASE, NODE, TOKEN = "rebase", "ets, per node", "ets, per token"
THRESHOLDS = (0.2, 0.01, 0.005, 0.002)  # cosine distance of clusters; 0.2 is that of all other tables
MEASURES = ("kv_sum", "per_selection", "mean_pages", "peak_pages")


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
                for measure in MEASURES
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
