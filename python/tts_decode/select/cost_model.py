"""The cost model of ETS: which leaves of a search tree to keep.

Hooper et al., "ETS: Efficient Tree Search for Inference-Time Scaling", arXiv 2502.13575. Over the sets S of
leaves,

    maximise   sum_{i in S} O_i  -  lambda_b * cost(V_S) / cost(V)  +  lambda_d * |C_S| / |C|

O_i is leaf i's share of the outcome (they sum to 1), V_S are the nodes on the paths from the root to S, V the
nodes on the paths to all leaves, C_S the clusters that S touches, C all clusters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from tts_kernels.checks import number

from .closure import Items, best_choice, greedy_choice, reduced
from .scores import require_finite

# Objectives closer than this count as equal; `ets_select` describes the tie rule.
RESOLUTION = 2e-6


def retained_nodes(parents: Sequence[int], leaves: Sequence[int]) -> list[int]:
    """Returns the nodes on the paths from the root to `leaves`, including the leaves, ascending.

    `parents[v]` is the parent of node v, smaller than v, or -1 at a root.
    """
    seen: set[int] = set()
    for node in leaves:
        while node >= 0 and node not in seen:
            seen.add(node)
            node = parents[node]
    return sorted(seen)


def ets_objective(
    kept: Sequence[bool],
    outcomes: Sequence[float],
    parents: Sequence[int],
    leaves: Sequence[int],
    costs: Sequence[float],
    clusters: Sequence[int] | None = None,
    *,
    lambda_b: float = 0.0,
    lambda_d: float = 0.0,
) -> float:
    """Returns the module docstring's objective for one choice of leaves. Arguments as in `ets_select`."""
    total_cost = math.fsum(costs[v] for v in retained_nodes(parents, leaves))
    chosen = [i for i, keep in enumerate(kept) if keep]
    value = math.fsum(outcomes[i] for i in chosen)
    if total_cost > 0:
        retained = retained_nodes(parents, [leaves[i] for i in chosen])
        value -= lambda_b * math.fsum(costs[v] for v in retained) / total_cost
    if clusters is not None:
        value += lambda_d * len({clusters[i] for i in chosen}) / len(set(clusters))
    return value


def ets_select(
    outcomes: Sequence[float],
    parents: Sequence[int],
    leaves: Sequence[int],
    costs: Sequence[float],
    clusters: Sequence[int] | None = None,
    *,
    lambda_b: float,
    lambda_d: float = 0.0,
    method: Literal["exact", "greedy"] = "exact",
) -> list[bool]:
    """Returns which leaves to keep by the ETS objective.

    Args:
        outcomes: one non-negative number per leaf, O_i.
        parents: one per node of the tree, smaller than the node; -1 at a root.
        leaves: distinct node ids; no leaf is an ancestor of another.
        costs: one non-negative number per node: 1 each for the published model, or the node's tokens.
        clusters: one label per leaf, or None to leave the coverage term out.
        method: "exact": an optimum, by the reductions of `select.closure` and HiGHS for what they leave open.
            "greedy": what they leave open is decided best path first, without SciPy.

    At least one leaf is kept. Objectives within RESOLUTION are ties: each leaf carries a bonus that decreases
    with its index, less than RESOLUTION in total, so a tie goes to more leaves and, between equal leaves, to
    the lower index. With lambda_b = 0 every leaf is kept.

    At 256 leaves, on the 280 random trees of benches/bench_ets.py, exact took 2.3 ms of CPU time in the
    median, 8 ms at the 99th percentile and 18 ms at most; 13 and 31 ms on trees grown by the exact
    allocation, where the integer programme is needed more often. Greedy took at most 5 ms and found the
    optimum on 85 %; it lost 7e-4 of the objective on average, 2e-2 at worst.
    """
    n = _check(outcomes, parents, leaves, costs, clusters, lambda_b, lambda_d)
    if method not in ("exact", "greedy"):
        raise ValueError(f"method: got {method!r}, expected 'exact' or 'greedy'")
    if n == 1 or lambda_b == 0:
        return [True] * n  # a further leaf costs nothing, and never lowers the other two terms

    # One item of `closure` per node, after a root that represents what every choice takes.
    nodes = retained_nodes(parents, leaves)
    place = {node: i for i, node in enumerate(nodes, start=1)} | {-1: 0}
    total_cost = math.fsum(costs[v] for v in nodes)
    price = lambda_b / total_cost if total_cost > 0 else 0.0
    items = Items(
        [-1] + [place[parents[v]] for v in nodes],
        [0.0] + [-price * costs[v] for v in nodes],
        [0] * (len(nodes) + 1),
        [[] for _ in range(len(nodes) + 1)],
    )
    if sum(parents[v] < 0 for v in nodes) == 1:
        items.gains[1] = 0.0  # every choice pays for the only root
    labels: dict[int, int] = {}
    for i, leaf in enumerate(leaves):
        v = place[leaf]
        items.gains[v] += outcomes[i] + RESOLUTION / (2 * n) * (2 - i / n)  # the tie rule
        items.held[v] = [i]
        if clusters is not None and lambda_d > 0:
            items.covers[v] = 1 << labels.setdefault(clusters[i], len(labels))
    worth = lambda_d / max(len(labels), 1)

    small = reduced(items, worth)
    kept = best_choice(small, worth) if method == "exact" else greedy_choice(small, worth)
    if not kept:  # nothing pays: the reductions, which may drop any leaf, do not know that one must stay
        kept = best_choice(items, worth, nonempty=True) if method == "exact" else [_best_alone(items)]
    chosen = set(kept)
    return [i in chosen for i in range(n)]


def _best_alone(items: Items) -> int:
    """Returns the leaf whose path gains most."""
    brings = [0.0] * len(items)
    for v in range(1, len(items)):
        brings[v] = brings[items.parents[v]] + items.gains[v]
    v = max((v for v in range(len(items)) if items.held[v]), key=brings.__getitem__)
    return items.held[v][0]


def _check(
    outcomes: Sequence[float],
    parents: Sequence[int],
    leaves: Sequence[int],
    costs: Sequence[float],
    clusters: Sequence[int] | None,
    lambda_b: float,
    lambda_d: float,
) -> int:
    """Returns the number of leaves; raises ValueError unless the arguments describe a tree with costs."""
    n = len(leaves)
    for name, value in (("lambda_b", lambda_b), ("lambda_d", lambda_d)):
        number(name, value, low=0)
    if n == 0:
        raise ValueError("leaves: got nothing, expected at least one")
    if len(outcomes) != n or (clusters is not None and len(clusters) != n):
        labels = None if clusters is None else len(clusters)
        raise ValueError(
            f"leaves: got {n} beside {len(outcomes)} outcomes and {labels} clusters, expected one each"
        )
    if len(costs) != len(parents):
        raise ValueError(f"costs: got {len(costs)} for {len(parents)} nodes, expected one each")
    for name, values in (("outcomes", outcomes), ("costs", costs)):
        require_finite(name, values)
        if any(value < 0 for value in values):
            raise ValueError(f"{name}: got {list(values)}, expected no negative number")
    for node, parent in enumerate(parents):
        if not -1 <= parent < node:
            raise ValueError(f"parents[{node}]: got {parent}, expected -1 or a smaller node id")
    if any(not 0 <= leaf < len(parents) for leaf in leaves):
        raise ValueError(f"leaves: got {list(leaves)}, expected node ids in 0..{len(parents) - 1}")
    inner = retained_nodes(parents, [parents[leaf] for leaf in leaves if parents[leaf] >= 0])
    if len(set(leaves)) != n or not set(leaves).isdisjoint(inner):
        raise ValueError(f"leaves: got {list(leaves)}, expected distinct nodes, none of them above another")
    return n
