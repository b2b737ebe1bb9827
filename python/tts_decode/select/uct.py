"""Upper confidence bounds: which child of a node a Monte Carlo tree search visits next."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .scores import require_finite


def uct(
    values: Sequence[float], visits: Sequence[int], parent_visits: int, exploration: float = 1.0
) -> list[float]:
    """Returns the UCT of each child: value + exploration * sqrt(ln(parent_visits) / max(1, visits)).

    Kocsis and Szepesvari, "Bandit based Monte-Carlo Planning", ECML 2006. `values` are means of the values
    backed up through the children; an unvisited child has its prior estimate and counts as visited once, as
    in llm-reasoners ("UCT with fast reward"), so that not every child has to be tried. Before the parent's
    first visit the values alone decide.
    """
    _check(values, visits, parent_visits)
    spread = math.log(max(parent_visits, 1))
    return [
        value + exploration * math.sqrt(spread / max(count, 1))
        for value, count in zip(values, visits, strict=True)
    ]


def puct(
    values: Sequence[float],
    priors: Sequence[float],
    visits: Sequence[int],
    parent_visits: int,
    *,
    pb_c_base: float = 19652.0,
    pb_c_init: float = 1.25,
) -> list[float]:
    """Returns the PUCT of each child: value + c * prior * sqrt(parent_visits) / (1 + visits).

    Here c = ln((parent_visits + pb_c_base + 1) / pb_c_base) + pb_c_init. Silver et al., "A general
    reinforcement learning algorithm that masters chess, shogi and Go through self-play", Science 2018,
    pseudocode; its constants, which openr keeps. `priors` sum to 1.
    """
    _check(values, visits, parent_visits)
    require_finite("priors", priors)
    if not pb_c_base > 0:
        raise ValueError(f"pb_c_base: got {pb_c_base}, expected a positive number")
    c = math.log((parent_visits + pb_c_base + 1) / pb_c_base) + pb_c_init
    return [
        value + c * prior * math.sqrt(parent_visits) / (1 + count)
        for value, prior, count in zip(values, priors, visits, strict=True)
    ]


def self_refine_uct(
    rewards: Sequence[Sequence[float]], parents: Sequence[int], exploration: float = 1.4
) -> tuple[list[float], list[float]]:
    """Returns (Q, UCT) of the answers in a tree where a child is a refinement of its parent.

    Zhang et al., "Accessing GPT-4 level Mathematical Olympiad Solutions via Monte Carlo Tree Self-refine",
    arXiv 2406.07394, section 3. An answer's own value is (min + mean) / 2 of its rewards, which guards
    against a lenient reward; its Q is the mean of that and the best Q below it. UCT adds exploration *
    sqrt(ln(1 + rewards of its parent) / rewards of its own).

    Args:
        rewards: of each answer, at least one.
        parents: index of the answer it refines, lower than its own; -1 for none.
        exploration: the paper's code uses 1.4, for rewards of 0 to 100.
    """
    for i, (given, parent) in enumerate(zip(rewards, parents, strict=True)):
        require_finite(f"rewards[{i}]", given)
        if not given:
            raise ValueError(f"rewards[{i}]: got nothing, expected at least one reward")
        if not -1 <= parent < i:
            raise ValueError(f"parents[{i}]: got {parent}, expected -1 or an index below {i}")
    q = [(min(given) + math.fsum(given) / len(given)) / 2 for given in rewards]
    best_below: dict[int, float] = {}
    for i in reversed(range(len(q))):
        if i in best_below:
            q[i] = (q[i] + best_below[i]) / 2
        best_below[parents[i]] = max(q[i], best_below.get(parents[i], -math.inf))
    visits = [len(given) for given in rewards]
    bounds = [
        value + exploration * math.sqrt(math.log(1 + (visits[parent] if parent >= 0 else 0)) / count)
        for value, parent, count in zip(q, parents, visits, strict=True)
    ]
    return q, bounds


def _check(values: Sequence[float], visits: Sequence[int], parent_visits: int) -> None:
    require_finite("values", values)
    if parent_visits < 0 or any(count < 0 for count in visits):
        raise ValueError(f"visits: got {list(visits)} below {parent_visits}, expected counts of 0 or more")
