"""Searches on the actors of a cluster of two nodes: the same texts, each once, whatever dies meanwhile."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator

import pytest
from cluster_work import here, process, tiny_decoder, tiny_search
from tts_decode.cluster import Ended, SearchPool
from tts_decode.search import SearchResult

from benches.local_cluster import LocalCluster


@pytest.fixture(scope="module")
def pool(cluster: LocalCluster) -> Iterator[SearchPool]:
    with SearchPool(tiny_decoder, in_flight=2, attempts=3, pinned_prompts=2) as pool:
        yield pool


def until(condition: Callable[[], bool], seconds: float = 120) -> None:
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends, "it takes too long"
        time.sleep(0.05)


def texts(ended: list[Ended[SearchResult]]) -> dict[int, list[str]]:
    """Of each search, by its seed, the texts of its tree."""
    found = {}
    for one in ended:
        work = one.work
        assert work.sampling.seed not in found  # type: ignore[attr-defined]
        found[work.sampling.seed] = [node.text for node in one.result().tree]  # type: ignore[attr-defined]
    return found


def test_the_same_text_on_any_actor(pool: SearchPool) -> None:
    works = [tiny_search(seed) for seed in range(8)]
    ended = list(pool.results(works))
    assert texts(ended) == {seed: [node.text for node in here(works[seed]).tree] for seed in range(8)}
    assert len({one.actor for one in ended}) == 2
    stats = pool.stats()
    assert (stats.actors, stats.lost, stats.waiting, stats.running) == (2, 0, 0, 0)
    assert stats.ended == 8
    until(lambda: pool.stats().decoders.generated_tokens > 0)
    assert pool.stats().decoders.cost.flops > 0


def test_an_actor_that_is_killed_is_replaced(pool: SearchPool) -> None:
    before = pool.stats().lost
    works = [tiny_search(seed, tokens=96) for seed in range(100, 108)]
    results = pool.results(works)
    ended = [next(results)]
    os.kill(pool.ask(process), signal.SIGKILL)
    ended += results
    assert texts(ended) == {w.sampling.seed: [n.text for n in here(w).tree] for w in works}  # type: ignore[union-attr]
    assert pool.stats().lost == before + 1
    assert sum(one.deaths for one in ended) >= 1
    until(lambda: pool.stats().actors == 2)
