"""The price of KV, lambda_b: what each value saves, and its cost in accuracy, on a development set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tts_decode.select import Interval, geometric_mean_ratio, paired_proportion_difference

from benches.ets_claims.growing import LAMBDA_D, Policy, account, grow
from benches.ets_claims.searches import DEVELOPMENT, Source

Record = dict[str, Any]

PRICES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0)  # of lambda_b; 0 is REBASE
BLOCK = {16: 250, 64: 250, 256: 50}  # simulated problems that are searched together, by width
MOST_LOSS = 0.02  # of accuracy


def block(source: Source, width: int, threshold: float, first: int, count: int) -> Record:
    """Of problems first .. first + count - 1: by price, who was right by the weighted vote, and the KV
    sums."""
    found: Record = {}
    for price in PRICES:
        policy = Policy(price, LAMBDA_D[width], threshold=threshold)
        voted, sums = [], []
        for problem in range(first, first + count):
            world = source.world(problem, DEVELOPMENT)
            seen = account(world.nodes, grow(world, width, policy))
            voted.append(int(seen.voted))
            sums.append(seen.kv_sum)
        found[str(price)] = {"voted": voted, "kv_sum": sums}
    return found


def swept(blocks: Sequence[Record]) -> list[Record]:
    """A row a price: problems, accuracy, what is lost against REBASE with its interval of 95 %, and the KV
    of REBASE over its own."""
    joined: dict[str, dict[str, list[int]]] = {}
    for found in blocks:
        for price, lists in found.items():
            mine = joined.setdefault(price, {"voted": [], "kv_sum": []})
            for name, values in lists.items():
                mine[name] += values
    base = joined["0.0"]
    rows = []
    for price, lists in joined.items():
        voted = [float(right) for right in lists["voted"]]
        change = paired_proportion_difference(voted, [float(right) for right in base["voted"]])
        # A search that ends with its first step has no selection, and no KV by this count.
        sums = [[max(value, 1) for value in side] for side in (base["kv_sum"], lists["kv_sum"])]
        saved = geometric_mean_ratio(*sums) if price != "0.0" else Interval(1.0, 1.0, 1.0)
        rows.append(
            {
                "price": float(price),
                "problems": len(voted),
                "accuracy": sum(voted) / len(voted),
                "change": change.to_dict(),
                "saved": saved.to_dict(),
            }
        )
    return rows


def largest(rows: Sequence[Record]) -> float | None:
    """The largest price up to which every price has a change of accuracy whose lower bound is above
    -`MOST_LOSS`; None where there is none but 0."""
    allowed = None
    for row in sorted(rows, key=lambda row: row["price"]):
        if row["price"] > 0:
            if row["change"]["low"] <= -MOST_LOSS:
                break
            allowed = row["price"]
    return allowed
