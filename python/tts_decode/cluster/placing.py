"""Which actors a cluster should have, and on which nodes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from ..errors import ClusterError


@dataclass(frozen=True)
class Node:
    """A live node. name: its human-readable name."""

    id: str
    name: str
    cpus: float
    gpus: float = 0


@dataclass(frozen=True)
class Place:
    """Where an actor should be, and its resources: whole cores, which are its threads, and GPUs."""

    node: Node
    cpus: int
    gpus: int = 0

    def __str__(self) -> str:
        """For an error: the node by its name."""
        has = f"{self.cpus} core{'s' * (self.cpus != 1)}" + f" and {self.gpus} GPU" * bool(self.gpus)
        return f"node {self.node.name} ({has})"


@dataclass(frozen=True)
class Wish:
    """What the user asks for.

    actors: total number; None: one per GPU, or one per node if there are none. cpus: of each; None: an equal
    share of its node's. gpus: whether each has one; None: if the cluster has any.
    """

    actors: int | None = None
    cpus: int | None = None
    gpus: bool | None = None


def places(nodes: Sequence[Node], wish: Wish) -> list[Place]:
    """Returns the places of all actors of a cluster, node by node.

    Raises ClusterError if the cluster lacks room for them.
    """
    on_gpus = any(node.gpus >= 1 for node in nodes) if wish.gpus is None else wish.gpus
    if wish.actors is None:
        found = [place for node in nodes for place in _all_of(node, wish.cpus, on_gpus)]
        if found:
            return found
    else:
        shares = (
            [wish.cpus] if wish.cpus else range(int(max((node.cpus for node in nodes), default=0)), 0, -1)
        )
        for cpus in shares:
            found = _spread(
                [(node, _room(node, cpus, on_gpus)) for node in nodes], cpus, on_gpus, wish.actors
            )
            if len(found) == wish.actors:
                return found
    wanted = (
        f"{wish.actors or 1} of {wish.cpus or 1} core{'s' * ((wish.cpus or 1) > 1)}" + " and a GPU" * on_gpus
    )
    offered = ", ".join(f"{n.name}: {n.cpus:g} cores, {n.gpus:g} GPUs" for n in nodes) or "no node"
    raise ClusterError(f"actors: got {wanted}, expected at most what the cluster has ({offered})")


def possible(nodes: Sequence[Node], wish: Wish) -> list[Place]:
    """Returns the places of as many of the actors as the cluster has room for.

    Raises ClusterError if that is none.
    """
    for count in range(wish.actors or 1, 1, -1):
        with suppress(ClusterError):
            return places(nodes, replace(wish, actors=count))
    return places(nodes, wish if wish.actors is None else replace(wish, actors=1))


def missing(wanted: Iterable[Place], there: Iterable[Place]) -> list[Place]:
    """Returns the places that have no actor."""
    have = Counter(there)
    found = []
    for place in wanted:
        if have[place]:
            have[place] -= 1
        else:
            found.append(place)
    return found


def _room(node: Node, cpus: int, on_gpus: bool) -> int:
    room = int(node.cpus // cpus)
    return min(room, int(node.gpus)) if on_gpus else room


def _all_of(node: Node, cpus: int | None, on_gpus: bool) -> list[Place]:
    count = int(node.gpus) if on_gpus else 1
    if not count or node.cpus < 1:
        return []
    each = cpus or max(1, int(node.cpus // count))
    return [Place(node, each, int(on_gpus))] * min(count, _room(node, each, on_gpus))


def _spread(rooms: list[tuple[Node, int]], cpus: int, on_gpus: bool, count: int) -> list[Place]:
    """Assigns one place at a time to the node with the most room left."""
    left = {node: room for node, room in rooms if room > 0}
    found: list[Place] = []
    while left and len(found) < count:
        node = max(left, key=lambda node: left[node])
        found.append(Place(node, cpus, int(on_gpus)))
        left[node] -= 1
        left = {node: room for node, room in left.items() if room}
    return found
