"""The cost model of ETS: which leaves of a search tree to keep.

Hooper et al., "ETS: Efficient Tree Search for Inference-Time Scaling", arXiv 2502.13575. Over the sets S of
leaves,

    maximise   sum_{i in S} O_i  -  lambda_b * cost(V_S) / cost(V)  +  lambda_d * |C_S| / |C|

O_i is leaf i's share of the outcome (they sum to 1), V_S the nodes on the paths from the root to S, V those
of all leaves, C_S the clusters that S touches, C all clusters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from tts_decode.select.scores import require_finite

# Objectives closer than this count as equal; see `ets_select` for what then decides.
RESOLUTION = 2e-6
# HiGHS stops within an absolute gap of 1e-6; scaled up, that lies far below RESOLUTION.
_SCALE = 1e6


def retained_nodes(parents: Sequence[int], leaves: Sequence[int]) -> list[int]:
    """The nodes on the paths from the root to `leaves`, themselves included, in increasing order.

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
    """The objective of the module docstring for one choice of leaves. Arguments as in `ets_select`."""
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
) -> list[bool]:
    """Which leaves to keep, by the exact optimum of the ETS objective (a mixed integer programme, HiGHS).

    outcomes  one non-negative number a leaf, O_i.
    parents   one a node of the tree, smaller than the node; -1 at a root.
    leaves    distinct node ids; no leaf is an ancestor of another.
    costs     one non-negative number a node: 1 each for the published model, or the node's tokens.
    clusters  one label a leaf, or None to leave the coverage term out.

    At least one leaf is kept. Objectives within RESOLUTION are ties: each leaf carries a bonus that falls
    with its index, less than that in sum, so a tie goes to more leaves and, between like leaves, to the lower
    index. With lambda_b = 0 every leaf is kept.
    """
    n = _check(outcomes, parents, leaves, costs, clusters, lambda_b, lambda_d)
    if n == 1 or lambda_b == 0:
        return [True] * n  # a further leaf costs nothing, and never lowers the other two terms

    from scipy.optimize import Bounds, LinearConstraint, milp  # SciPy comes with the [search] extra
    from scipy.sparse import coo_array

    # Variables: x_i for each leaf, then y_j for each inner node, then c_k for each cluster. Only x must be
    # asked to be integer: for binary x the best y and c are 0 or 1 by themselves.
    nodes = retained_nodes(parents, leaves)
    column = {node: i for i, node in enumerate(leaves)}
    for node in nodes:
        column.setdefault(node, len(column))
    members: dict[int, list[int]] = {}  # cluster label -> its leaves
    if clusters is not None and lambda_d > 0:
        for i, label in enumerate(clusters):
            members.setdefault(label, []).append(i)
    size = len(column) + len(members)

    gain = np.zeros(size)
    gain[:n] = outcomes
    gain[:n] += RESOLUTION / (2 * n) * (2 - np.arange(n) / n)  # the tie rule
    total_cost = math.fsum(costs[v] for v in nodes)
    for node in nodes:
        if total_cost > 0:
            gain[column[node]] -= lambda_b * costs[node] / total_cost
    gain[len(column) :] = lambda_d / max(len(members), 1)

    rows: list[dict[int, float]] = [{i: 1.0 for i in range(n)}]  # sum x >= 1
    for node in nodes:
        if parents[node] >= 0:
            rows.append({column[parents[node]]: 1.0, column[node]: -1.0})  # parent >= child
    for c, cluster in enumerate(members.values(), start=len(column)):
        rows.append({i: 1.0 for i in cluster} | {c: -1.0})  # sum of the cluster's x >= c
    lower = np.zeros(len(rows))
    lower[0] = 1
    row_ids = [r for r, row in enumerate(rows) for _ in row]
    column_ids = [c for row in rows for c in row]
    values = [value for row in rows for value in row.values()]
    matrix = coo_array((values, (row_ids, column_ids)), shape=(len(rows), size)).tocsc()

    solution = milp(
        -_SCALE * gain,
        integrality=np.arange(size) < n,
        bounds=Bounds(0, 1),
        constraints=LinearConstraint(matrix, lower, np.inf),
        options={"mip_rel_gap": 0.0},
    )
    if solution.x is None or solution.status != 0:
        raise RuntimeError(f"the ETS programme with {n} leaves was not solved: {solution.message}")
    return [bool(x > 0.5) for x in solution.x[:n]]


def _check(
    outcomes: Sequence[float],
    parents: Sequence[int],
    leaves: Sequence[int],
    costs: Sequence[float],
    clusters: Sequence[int] | None,
    lambda_b: float,
    lambda_d: float,
) -> int:
    """The number of leaves; ValueError for arguments that do not describe a tree with costs."""
    n = len(leaves)
    for name, value in (("lambda_b", lambda_b), ("lambda_d", lambda_d)):
        if not (value >= 0 and math.isfinite(value)):
            raise ValueError(f"{name}={value}; expected a finite number, 0 or more")
    if n == 0:
        raise ValueError("leaves is empty; expected at least one")
    if len(outcomes) != n or (clusters is not None and len(clusters) != n):
        labels = None if clusters is None else len(clusters)
        raise ValueError(f"{n} leaves but {len(outcomes)} outcomes and {labels} clusters; expected one each")
    if len(costs) != len(parents):
        raise ValueError(f"{len(parents)} nodes but {len(costs)} costs; expected one each")
    for name, values in (("outcomes", outcomes), ("costs", costs)):
        require_finite(name, values)
        if any(value < 0 for value in values):
            raise ValueError(f"{name}={list(values)}; expected no negative number")
    for node, parent in enumerate(parents):
        if not -1 <= parent < node:
            raise ValueError(f"parents[{node}]={parent}; expected -1 or a smaller node id")
    if any(not 0 <= leaf < len(parents) for leaf in leaves):
        raise ValueError(f"leaves={list(leaves)}; expected node ids in 0..{len(parents) - 1}")
    inner = retained_nodes(parents, [parents[leaf] for leaf in leaves if parents[leaf] >= 0])
    if len(set(leaves)) != n or not set(leaves).isdisjoint(inner):
        raise ValueError(f"leaves={list(leaves)}; expected distinct nodes, none of them above another")
    return n
