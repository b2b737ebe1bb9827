"""Which items of a tree to take, if an item needs those above it and a cover pays once.

Item 0 is the root, which is taken. Every other item has a parent, a gain of any sign and a set of covers, as
the bits of an integer. The items taken pay their gains and, for each cover that one of them has, `worth`.
Without covers this is a maximum-weight closure of a tree, which one pass from the leaves up solves. With
covers it is as hard as set cover, but the trees of searches break down under the rules of `reduced`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ..extras import require

# Gains are scaled by this for HiGHS. Its tolerances, 1e-7 and an absolute gap of 1e-6, are then far below
# every difference that counts in an objective of order 1.
_SCALE = 1e6


@dataclass
class Items:
    """One entry per item: its parent, lower than itself (-1 at item 0), gain, covers, and what it holds."""

    parents: list[int]
    gains: list[float]
    covers: list[int]
    held: list[list[int]]

    def __len__(self) -> int:
        return len(self.parents)


def reduced(items: Items, worth: float) -> Items:
    """Returns a smaller problem whose best choice, by what its items hold, is a best choice of `items`.

    Until nothing changes:
    - A cover that the root or an item above has is crossed out. A cover that a single item has joins its
    gain.
    - An item whose gain is not negative is taken whenever its parent is: they become one.
    - An item without covers is taken only for what is below. If that is one item, they become one.
    - An item that would not pay even if every item below it were paid for all its covers is dropped, with
    those.
    - Of two items with equal covers and nothing below, one is dropped if by itself it costs as much as the
    other with everything that is above only the other.
    """
    items = Items(list(items.parents), list(items.gains), list(items.covers), list(items.held))
    while True:
        size, changed = len(items), _cross_out(items, worth)
        items = _contracted(items, worth)
        changed |= len(items) < size
        dominated = _dominated(items, thorough=not changed)
        if dominated:
            items = _without(items, dominated)
        elif not changed:
            return items


def _cross_out(items: Items, worth: float) -> bool:
    """Applies the first rule, in place; returns whether it changed anything."""
    once = twice = 0
    for covers in items.covers:
        twice |= once & covers
        once |= covers
    single = once & ~twice
    changed = False
    seen = [items.covers[0]] * len(items)  # covers of the item and all above it
    for v in range(1, len(items)):
        above = seen[items.parents[v]]
        covers = items.covers[v] & ~above
        if own := covers & single:
            items.gains[v] += worth * own.bit_count()
            covers &= ~own
        changed |= covers != items.covers[v]
        items.covers[v] = covers
        seen[v] = above | covers
    return changed


def _contracted(items: Items, worth: float) -> Items:
    """Applies the three middle rules, from the leaves up."""
    parents, gains, covers, held = items.parents, items.gains, items.covers, items.held
    size = len(items)
    below = [0.0] * size  # upper bound on the gain of the items below, once the item is taken
    children = [0] * size  # number of remaining children, and the last of them
    last = [0] * size
    joined = [False] * size  # merged into the item above
    gone = [False] * size
    for v in range(size - 1, 0, -1):
        above = parents[v]
        if gains[v] >= 0:
            joined[v] = True
            gains[above] += gains[v]
            covers[above] |= covers[v]
            held[above] = held[above] + held[v]
            below[above] += below[v]
            children[above] += children[v]
            last[above] = last[v] or last[above]
            continue
        if children[v] == 1 and not covers[v]:
            only = last[v]
            joined[only] = True
            gains[v] += gains[only]
            covers[v] = covers[only]
            held[v] = held[v] + held[only]
            below[v], children[v], last[v] = below[only], children[only], last[only]
        bound = gains[v] + worth * covers[v].bit_count() + below[v]
        if bound <= 0:
            gone[v] = True
        else:
            below[above] += bound
            children[above] += 1
            last[above] = v

    kept, kept_parents = [0], [-1]
    place = [0] * size  # new index of the item, -1 if dropped
    for v in range(1, size):
        above = place[parents[v]]
        if gone[v] or above < 0:
            place[v] = -1
        elif joined[v]:
            place[v] = above
        else:
            place[v] = len(kept)
            kept.append(v)
            kept_parents.append(above)
    return Items(kept_parents, [gains[v] for v in kept], [covers[v] for v in kept], [held[v] for v in kept])


def _dominated(items: Items, *, thorough: bool) -> set[int]:
    """Returns items that the last rule drops. Unless `thorough`, only some of them, found in linear time."""
    parents, gains = items.parents, items.gains
    inner = set(parents)
    cost = [0.0] * len(items)  # of the item with all above it
    rivals: dict[int, list[int]] = {}  # covers -> items with nothing below
    for v in range(1, len(items)):
        cost[v] = cost[parents[v]] - gains[v]
        if v not in inner:
            rivals.setdefault(items.covers[v], []).append(v)
    dominated: set[int] = set()
    for group in rivals.values():
        if len(group) > 1:
            cheapest = min(group, key=cost.__getitem__)
            best: dict[int, int] = {}  # parent -> the best of the group below it
            for v in group:
                if v != cheapest and cost[cheapest] <= -gains[v]:
                    dominated.add(v)
                elif (rival := best.setdefault(parents[v], v)) != v:
                    worse = v if gains[v] <= gains[rival] else rival
                    dominated.add(worse)
                    best[parents[v]] = rival if worse == v else v
    if dominated or not thorough:
        return dominated
    for group in rivals.values():
        paths = {v: _path(items, v) for v in group}
        for v in group:
            others = (u for u in group if u != v and u not in dominated)
            if any(cost[u] - cost[_meeting(paths[u], paths[v])] <= -gains[v] for u in others):
                dominated.add(v)
    return dominated


def _path(items: Items, v: int) -> list[int]:
    path = [v]
    while v:
        v = items.parents[v]
        path.append(v)
    return path[::-1]


def _meeting(one: list[int], other: list[int]) -> int:
    """Returns the last item that two paths from the root share."""
    return [v for v, u in zip(one, other, strict=False) if v == u][-1]


def _without(items: Items, leaves: set[int]) -> Items:
    kept = [v for v in range(len(items)) if v not in leaves]
    place = {v: i for i, v in enumerate(kept)} | {-1: -1}
    return Items(
        [place[items.parents[v]] for v in kept],
        [items.gains[v] for v in kept],
        [items.covers[v] for v in kept],
        [items.held[v] for v in kept],
    )


def best_choice(items: Items, worth: float, *, nonempty: bool = False) -> list[int]:
    """Returns what a best choice holds, found by HiGHS. nonempty: it must hold something.

    It solves the linear programme, and the integer programme if the solution is fractional.
    """
    if len(items) == 1:
        return list(items.held[0])
    require("scipy")
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import coo_array

    # Variables: x_v for the items except the root, then c_k for each cover.
    size = len(items) - 1
    columns: dict[int, int] = {}  # cover -> its column
    entries: list[tuple[int, int, float]] = []  # row, column, value; each row must be at least 0
    rows = 0
    for v in range(1, size + 1):
        for cover in _bits(items.covers[v]):
            entries.append((columns.setdefault(cover, len(columns)), v - 1, 1.0))
    for row in range(len(columns)):  # sum of the x with the cover >= c
        entries.append((row, size + row, -1.0))
    rows = len(columns)
    for v in range(1, size + 1):
        if items.parents[v]:  # x of the parent >= x
            entries += [(rows, items.parents[v] - 1, 1.0), (rows, v - 1, -1.0)]
            rows += 1
    lower = np.zeros(rows + nonempty)
    if nonempty:
        entries += [(rows, v - 1, 1.0) for v in range(1, size + 1) if items.held[v]]
        lower[rows] = 1.0
    row_ids, column_ids, values = zip(*entries, strict=True) if entries else ((), (), ())
    width = size + len(columns)
    matrix = coo_array((values, (row_ids, column_ids)), shape=(len(lower), width)).tocsc()
    gains = np.array(items.gains[1:] + [worth] * len(columns))
    for integral in (False, True):
        # Only x needs to be constrained to integers: the best c are then 0 or 1.
        solution = milp(
            -_SCALE * gains,
            integrality=(np.arange(width) < size) & integral,
            bounds=Bounds(0, 1),
            constraints=LinearConstraint(matrix, lower, np.inf) if len(lower) else (),
            options={"mip_rel_gap": 0.0},
        )
        if solution.x is None or solution.status != 0:
            raise RuntimeError(f"the programme with {size} items was not solved: {solution.message}")
        taken = solution.x[:size]
        if np.minimum(taken, 1 - taken).max() < 1e-6:
            break
    return items.held[0] + [i for v in range(size) if taken[v] > 0.5 for i in items.held[v + 1]]


def greedy_choice(items: Items, worth: float) -> list[int]:
    """Returns what a good choice holds: it repeatedly takes the item that gains most with those above it."""
    parents, gains = items.parents, items.gains
    size = len(items)
    taken = [True] + [False] * (size - 1)
    covered = items.covers[0]
    while True:
        path_gain, path_covers = [0.0] * size, [0] * size  # from the taken part down to the item
        best, most = 0, 0.0
        for v in range(1, size):
            if not taken[v]:
                above = parents[v]
                path_gain[v] = path_gain[above] + gains[v]
                path_covers[v] = path_covers[above] | items.covers[v]
                brings = path_gain[v] + worth * (path_covers[v] & ~covered).bit_count()
                if brings > most:
                    best, most = v, brings
        if not best:
            return [i for v in range(size) if taken[v] for i in items.held[v]]
        covered |= path_covers[best]
        while not taken[best]:
            taken[best] = True
            best = parents[best]


def _bits(covers: int) -> Iterator[int]:
    while covers:
        lowest = covers & -covers
        yield lowest
        covers ^= lowest
