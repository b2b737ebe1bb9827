"""Problems per minute from a budget of KV bytes: by the cost law on an H100, and by this CPU's parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import bfloat16
from tts_decode.cost import Machine, ModelShape, StepCounts, step_cost

from benches.ets_claims.admission import Batch, Load, Served, loads, serve
from benches.ets_claims.growing import Policy
from benches.ets_claims.paging import PAGE
from benches.ets_claims.parts import H100, LAYERS, SHAPES
from benches.ets_claims.searches import Source, searched
from tts_kernels.pool import page_bytes

Record = dict[str, Any]
StepSeconds = Callable[[Batch], float]

SETS = 3  # of searches, for the spread
EACH = {16: 120, 64: 36, 256: 16}  # searches of a set, by width: several times what runs at once
GIBIBYTES = (8, 16, 32, 64)
CPU_HEADS = "32/32/128"


def lawful(shape: ModelShape, machine: Machine) -> StepSeconds:
    """Seconds of a step by the cost law: the weights are read once for the whole batch."""

    def seconds(batch: Batch) -> float:
        counts = StepCounts(batch.rows, batch.rows, batch.pairs, batch.pairs // PAGE, batch.pages, PAGE)
        return machine.seconds(step_cost(shape, counts))

    return seconds


def measured_parts(
    layers: int, products: Mapping[int, float], attention: Sequence[tuple[int, int, float]]
) -> StepSeconds:
    """Seconds of a step by what was measured of one layer.

    products: seconds by rows, linear in between and beyond. attention: (pages, pairs, seconds) of measured
    trees, to which a law linear in pages and pairs is fitted.
    """
    rows = sorted(products)
    slope = (products[rows[-1]] - products[rows[-2]]) / (rows[-1] - rows[-2])
    trees = np.array(attention, dtype=np.float64)
    # Relative errors count, as the trees differ a hundredfold.
    per_page, per_pair = np.linalg.lstsq(trees[:, :2] / trees[:, 2:], np.ones(len(trees)), rcond=None)[0]

    def seconds(batch: Batch) -> float:
        inside = float(np.interp(batch.rows, rows, [products[count] for count in rows]))
        beyond = max(batch.rows - rows[-1], 0) * slope
        return layers * (inside + beyond + float(per_page) * batch.pages + float(per_pair) * batch.pairs)

    return seconds


def pages_of(shape: ModelShape, gibibytes: float) -> int:
    """Pages of all layers in bfloat16 that a budget holds."""
    one = page_bytes(shape.num_layers, shape.num_kv_heads, shape.head_dim, PAGE, bfloat16)
    return int(gibibytes * 2**30) // one


def machines(entries: Sequence[Record]) -> dict[str, tuple[ModelShape, StepSeconds]]:
    """By name, the model's shape and the seconds of its steps; this CPU's too where its parts were timed."""
    found = {f"H100, {name}": (shape, lawful(shape, H100)) for name, shape in SHAPES.items()}
    products: dict[int, float] = {}
    trees: list[tuple[int, int, float]] = []
    for entry in entries:
        if entry["part"] == "products":
            products = {int(rows): times[1] for rows, times in entry["result"].items()}
        elif entry["part"] == "attention" and entry["key"]["heads"] == CPU_HEADS:
            trees += [(row[0], row[1], row[3]) for rows in entry["result"].values() for row in rows]
    if products and trees:
        found[f"this CPU, {CPU_HEADS}"] = SHAPES[CPU_HEADS], measured_parts(LAYERS, products, trees)
    return found


def all_served(
    source: Source,
    width: int,
    chosen: Mapping[str, Policy],
    on: Mapping[str, tuple[ModelShape, StepSeconds]],
) -> Record:
    """By machine, budget in GiB and policy, what came of each set of searches; None where one does not
    fit."""
    sets = {
        name: [
            [_loads(source, problem, width, policy) for problem in part]
            for part in _sets(source, EACH[width])
        ]
        for name, policy in chosen.items()
    }
    most = max(load.pages for parts in sets.values() for part in parts for search in part for load in search)
    found: Record = {}
    for machine, (shape, seconds) in on.items():
        for gibibytes in GIBIBYTES:
            budget = pages_of(shape, gibibytes)
            found.setdefault(machine, {})[str(gibibytes)] = (
                {
                    name: [_told(serve(part, budget, seconds)) for part in parts]
                    for name, parts in sets.items()
                }
                if most <= budget
                else None
            )
    return found


def _sets(source: Source, each: int) -> list[list[int]]:
    """Problems of each set: all different where they are simulated, else the recorded ones again and
    again."""
    if source.scores != "recorded":
        return [[*range(part * each, (part + 1) * each)] for part in range(SETS)]
    return [[(number + part) % len(source.records) for number in range(each)] for part in range(SETS)]


def _loads(source: Source, problem: int, width: int, policy: Policy) -> list[Load]:
    return loads(searched(source.world(problem), width, policy)[1])


def _told(found: Served) -> Record:
    return found._asdict() | {"per_minute": found.per_minute}
