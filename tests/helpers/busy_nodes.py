"""Nodes of a Ray cluster whose cores belong to others, so that no actor can start there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from benches.local_cluster import LocalCluster


@contextmanager
def in_use(cluster: LocalCluster, *numbers: int) -> Iterator[Callable[[], None]]:
    """Takes the one core of each of these nodes, until the block ends or the function is called."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    class Other:
        def ready(self) -> None: ...

    other: Any = ray.remote(Other)
    there = [
        other.options(
            num_cpus=1,
            scheduling_strategy=NodeAffinitySchedulingStrategy(cluster.nodes[number].node_id, soft=False),
        ).remote()
        for number in numbers
    ]

    def free() -> None:
        for handle in there:
            ray.kill(handle)
        there.clear()

    try:
        ray.get([handle.ready.remote() for handle in there])
        yield free
    finally:
        free()
