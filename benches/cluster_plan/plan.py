"""Problems per hour on N GPUs: replicas of a group, each serving as many searches as its KV has room for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import cycle, islice
from typing import Any

from torch import bfloat16
from tts_decode.cost import ModelShape, StepCounts, step_cost

from benches.cluster_plan.law import H100S, Cluster, Group, Terms
from benches.cluster_plan.trees import Tree
from benches.ets_claims.admission import Batch, Load, serve
from benches.ets_claims.paging import PAGE
from tts_kernels.pool import page_bytes

Record = dict[str, Any]

SIZES = (1, 8, 64, 1024)  # GPUs of a cluster
GROUPS = (1, 2, 4, 8)
ROUNDS = 8  # times as many searches as run at once
FEW, MOST_STREAMED = 6, 12  # searches of a group
STUDY = 10_000  # problems
SHAPES = {
    name: ModelShape.gated(  # Llama-3 70B
        num_layers=80,
        num_q_heads=64,
        num_kv_heads=8,
        head_dim=128,
        hidden=8192,
        intermediate=28672,
        vocab=128256,
        weight_bytes=size,
    )
    for name, size in (("bfloat16", 2), ("8-bit", 1))
}


def plan(trees: Sequence[Tree], host: Callable[[float], float]) -> Record:
    """host: seconds of a step that the host takes for so many rows."""
    page = kv_page(SHAPES["bfloat16"])
    peaks = [tree.peak_pages * page for tree in trees]
    served = [
        group_row(group, name, trees, host)
        for name, shape in SHAPES.items()
        for group in groups(shape, trees)
    ]
    return {
        "kv": {
            "mean": sum(tree.mean_pages * page for tree in trees) / len(trees),
            "peak": sum(peaks) / len(peaks),
            "most": max(peaks),
            "unshared": sum(unshared_peak(tree, SHAPES["bfloat16"]) for tree in trees) / len(trees),
        },
        "groups": served,
        "clusters": [cluster_row(size, name, served) for size in SIZES for name in SHAPES],
    }


def line_through(measured: Sequence[Record]) -> Callable[[float], float]:
    """Seconds of the host by rows: a line through two measured steps."""
    (few, low), (many, high) = [(row["rows"], row["host"]) for row in measured]
    return lambda rows: float(low + (rows - few) * (high - low) / (many - few))


def read_bytes(shape: ModelShape) -> float:
    """Of the weights in a step: all but the embedding table."""
    return shape.parameters * shape.weight_bytes


def kv_page(shape: ModelShape) -> int:
    """Bytes of a page over all layers."""
    return page_bytes(shape.num_layers, shape.num_kv_heads, shape.head_dim, PAGE, bfloat16)


def unshared_peak(tree: Tree, shape: ModelShape) -> float:
    """Bytes if every branch held a copy of its path: the most in its time."""
    return max(pairs for _, _, pairs in tree.loads) * kv_page(shape) / PAGE


def groups(shape: ModelShape, trees: Sequence[Tree], cluster: Cluster = H100S) -> Iterator[Group]:
    """Each size with all weights on its GPUs, where a search finds room. Where fewer than `FEW` find it, also
    with the part of the weights in the hosts' memory that brings most problems an hour."""
    most = max(tree.peak_pages for tree in trees) * kv_page(shape)
    for gpus in GROUPS:
        group = Group(cluster, shape, gpus)
        if group.kv_room >= most:
            yield group
        if group.kv_room >= FEW * most:
            continue
        streamed = [
            replace(group, streamed=missing)
            for searches in range(1, MOST_STREAMED + 1)
            if 0 < (missing := searches * most - group.kv_room) <= read_bytes(shape)
        ]
        if streamed:
            yield max(streamed, key=lambda option: per_hour(option, trees)[0])


def per_hour(
    group: Group, trees: Sequence[Tree], unshared: bool = False
) -> tuple[float, Terms, float, float]:
    """Problems an hour, mean terms of a step, mean rows of a step and searches at a time.

    unshared: each branch reads the pages of its own path, though they are stored once.
    """
    spent, steps, rows, shape = Terms(0, 0, 0), 0, 0, group.shape

    def seconds(batch: Batch) -> float:
        nonlocal spent, steps, rows
        pages = batch.pairs // PAGE if unshared else batch.pages
        counts = StepCounts(batch.rows, batch.rows, batch.pairs, batch.pairs // PAGE, pages, PAGE)
        terms = group.terms(step_cost(shape, counts), batch.rows)
        spent, steps, rows = spent.plus(terms), steps + 1, rows + batch.rows
        return terms.total

    budget = int(group.kv_room // kv_page(shape))
    at_once = max(1, int(budget // (sum(tree.peak_pages for tree in trees) / len(trees))))
    searches = [[Load(*load) for load in tree.loads] for tree in islice(cycle(trees), ROUNDS * at_once)]
    served = serve(searches, budget, seconds)
    prompts = sum(prompt_seconds(group, tree.prompt) for tree in trees) / len(trees)
    whole = served.seconds / served.searches + prompts
    return 3600 / whole, spent.times(1 / steps), rows / steps, served.running


def prompt_seconds(group: Group, tokens: int) -> float:
    """Of a prompt, whose tokens ride along with steps that read the weights anyway."""
    pairs = tokens * (tokens + 1) // 2
    cost = step_cost(group.shape, StepCounts(tokens, 1, pairs, pairs // PAGE, -(-tokens // PAGE), PAGE))
    return cost.flops / (group.gpus * group.cluster.machine.flops) + group.all_reduce(tokens)


def group_row(group: Group, weights: str, trees: Sequence[Tree], host: Callable[[float], float]) -> Record:
    rate, terms, rows, running = per_hour(group, trees)
    on_host = host(rows)
    return {
        "weights": weights,
        "gpus": group.gpus,
        "streamed": group.streamed,
        "kv_room": group.kv_room,
        "running": running,
        "rows": rows,
        "step": terms.total,
        "terms": terms._asdict(),
        "per_hour": rate,
        "per_hour_unshared": per_hour(group, trees, unshared=True)[0],
        "host": on_host,
        "per_hour_with_host": rate * terms.total / (terms.total + on_host),
        # No more than this can be won by room for more searches: what a step takes however many run.
        "fixed": (terms.weights + terms.streamed + group.all_reduce(0)) / terms.total,
    }


def cluster_row(gpus: int, weights: str, served: Sequence[Record]) -> Record:
    """The best group for so many GPUs, by problems an hour of a GPU."""
    fitting = [row for row in served if row["weights"] == weights and gpus % row["gpus"] == 0]
    best = max(fitting, key=lambda row: float(row["per_hour"]) / int(row["gpus"]))
    count = gpus // best["gpus"]
    rate, kept = count * best["per_hour"], count * best["running"]
    return {
        "gpus": gpus,
        "weights": weights,
        "group": best["gpus"],
        "streamed": best["streamed"],
        "groups": count,
        "running": kept,
        "per_hour": rate,
        "per_hour_with_host": count * best["per_hour_with_host"],
        "search_seconds": 3600 * kept / rate,
        # The last searches end while nothing follows them.
        "study_hours": STUDY / rate + kept / rate,
        "binds": max(best["terms"], key=lambda name: float(best["terms"][name])),
        "share": max(best["terms"].values()) / best["step"],
    }
