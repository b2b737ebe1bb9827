"""The actors that a cluster gets, and the error if it has no room."""

from __future__ import annotations

import pytest
from tts_decode.cluster.placing import Node, Place, Wish, missing, places, possible
from tts_decode.errors import ClusterError

A, B, HEAD = Node("a", "node-a", 8), Node("b", "node-b", 4), Node("h", "head", 0)
GPUS = Node("g", "gpus", 32, 4)


@pytest.mark.parametrize(
    ("nodes", "wish", "expected"),
    [
        ([HEAD, A, B], Wish(), [(A, 8, 0), (B, 4, 0)]),
        ([A, B], Wish(cpus=2), [(A, 2, 0), (B, 2, 0)]),
        ([A], Wish(actors=2), [(A, 4, 0)] * 2),
        ([A, B], Wish(actors=3), [(A, 4, 0), (A, 4, 0), (B, 4, 0)]),
        ([A, B], Wish(actors=3, cpus=2), [(A, 2, 0)] * 3),
        ([A, GPUS], Wish(), [(GPUS, 8, 1)] * 4),
        ([A, GPUS], Wish(gpus=False), [(A, 8, 0), (GPUS, 32, 0)]),
        ([GPUS], Wish(actors=2, gpus=True), [(GPUS, 16, 1)] * 2),
        ([Node("few", "few", 2, 4)], Wish(), [(Node("few", "few", 2, 4), 1, 1)] * 2),
    ],
    ids=range(9),
)
def test_places(nodes: list[Node], wish: Wish, expected: list[tuple[Node, int, int]]) -> None:
    assert sorted(places(nodes, wish), key=str) == sorted((Place(*place) for place in expected), key=str)


@pytest.mark.parametrize(
    ("nodes", "wish", "message"),
    [
        ([], Wish(), r"actors: got 1 of 1 core, expected at most what the cluster has \(no node\)"),
        ([A, B], Wish(actors=3, cpus=8), r"got 3 of 8 cores, .*node-a: 8 cores, 0 GPUs, node-b: 4 cores"),
        ([A], Wish(gpus=True), "got 1 of 1 core and a GPU"),
        ([HEAD], Wish(actors=1), "head: 0 cores"),
    ],
    ids=range(4),
)
def test_a_cluster_without_room_is_refused(nodes: list[Node], wish: Wish, message: str) -> None:
    with pytest.raises(ClusterError, match=message):
        places(nodes, wish)


def test_a_cluster_that_shrank_keeps_what_fits() -> None:
    wish = Wish(actors=3, cpus=4)
    assert len(possible([A, B], wish)) == 3
    assert possible([B], wish) == [Place(B, 4)]
    assert possible([A, HEAD], Wish()) == places([A, HEAD], Wish())
    with pytest.raises(ClusterError, match="got 1 of 4 cores"):
        possible([HEAD], wish)


def test_what_is_missing_counts_places_that_are_alike() -> None:
    twice = [Place(A, 4)] * 2
    assert missing(twice, [Place(A, 4)]) == [Place(A, 4)]
    assert missing([*twice, Place(B, 4)], [Place(HEAD, 4), *twice]) == [Place(B, 4)]
