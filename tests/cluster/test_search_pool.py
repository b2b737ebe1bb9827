"""Searches on the actors of a cluster of two nodes: the same texts, each once, whatever dies meanwhile."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from cluster_work import (
    DyingScorer,
    Endless,
    Killer,
    here,
    no_decoder,
    process,
    tiny_decoder,
    tiny_search,
)
from tts_decode import SamplingParams
from tts_decode.cluster import Ended, PooledSearch, SearchPool
from tts_decode.errors import ClusterError, PromptTooLongError
from tts_decode.search import Journal, SearchResult, rebase

from benches.local_cluster import LocalCluster

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def pool(cluster: LocalCluster) -> Iterator[SearchPool]:
    with SearchPool(tiny_decoder, in_flight=2, attempts=2, pinned_prompts=2) as pool:
        until(lambda: pool.stats().actors == 2)
        yield pool


def until(condition: Callable[[], bool], seconds: float = 240) -> None:
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends, "it takes too long"
        time.sleep(0.05)


def texts(works: Sequence[PooledSearch], ended: Sequence[Ended[SearchResult]]) -> list[list[str]]:
    """Returns the texts of each search's tree; each search has ended once."""
    assert sorted(map(id, works)) == sorted(id(one.work) for one in ended)
    by_work = {id(one.work): one.result() for one in ended}
    return [[node.text for node in by_work[id(work)].tree] for work in works]


def texts_here(works: Sequence[PooledSearch]) -> list[list[str]]:
    return [[node.text for node in here(work).tree] for work in works]


def test_the_same_text_on_any_actor(pool: SearchPool) -> None:
    works = [tiny_search(seed) for seed in range(8)]
    ended = list(pool.results(works))
    assert texts(works, ended) == texts_here(works)
    assert len({one.actor for one in ended}) == 2
    stats = pool.stats()
    assert (stats.actors, stats.lost, stats.waiting, stats.running, stats.ended) == (2, 0, 0, 0, 8)
    until(lambda: pool.stats().decoders.generated_tokens > 0)
    assert pool.stats().decoders.cost.flops > 0
    assert pool.stats().decoders.pins <= 4


def test_an_error_is_its_search_s_alone(pool: SearchPool) -> None:
    works = [tiny_search(0, prompt="too long " * 400), tiny_search(1)]
    by_work = {id(one.work): one for one in pool.results(works)}
    assert isinstance(by_work[id(works[0])].error, PromptTooLongError)
    assert by_work[id(works[1])].result().answer == here(works[1]).answer
    with pytest.raises(PromptTooLongError):
        by_work[id(works[0])].result()


def test_what_cannot_be_sent_is_an_error(pool: SearchPool) -> None:
    (ended,) = pool.results([PooledSearch("x", rebase, {"n": 2}, scorer=open(os.devnull))])  # type: ignore[arg-type]  # noqa: SIM115
    assert isinstance(ended.error, TypeError)


def test_a_search_that_is_cancelled_ends(pool: SearchPool, tmp_path: Path) -> None:
    future = pool.submit(Endless(tmp_path))
    until((tmp_path / "began").exists)
    assert future.cancel()
    until((tmp_path / "ended").exists)
    until(lambda: pool.stats().running == 0)


def test_an_actor_that_is_killed_is_replaced(pool: SearchPool) -> None:
    before = pool.stats().lost
    works = [tiny_search(seed, tokens=96) for seed in range(100, 108)]
    results = pool.results(works)
    ended = [next(results)]
    os.kill(pool.ask(process)[0], signal.SIGKILL)
    ended += results
    assert texts(works, ended) == texts_here(works)
    assert pool.stats().lost == before + 1
    assert any(one.deaths for one in ended)
    until(lambda: pool.stats().actors == 2)


def test_a_search_goes_on_from_its_journal_on_another_actor(pool: SearchPool, tmp_path: Path) -> None:
    sampling = SamplingParams(seed=5, max_tokens=24, max_step_tokens=6)
    plain = PooledSearch("resumed", rebase, {"n": 3}, sampling, scorer=DyingScorer(tmp_path / "plain", -1))
    expected = here(plain)
    calls = len((tmp_path / "plain").read_text().splitlines())
    assert calls > 3
    journal = tmp_path / "0.journal"
    dying = PooledSearch(
        "resumed", rebase, {"n": 3}, sampling, scorer=DyingScorer(tmp_path / "calls", 3), journal=journal
    )
    (ended,) = pool.results([dying])
    assert [node.text for node in ended.result().tree] == [node.text for node in expected.tree]
    assert ended.deaths == 1
    processes = (tmp_path / "calls").read_text().splitlines()
    assert len(processes) == calls + 1, "two scores came from the journal, the third was asked for again"
    assert len(set(processes)) == 2
    Journal(journal, resume=True).close()  # it is whole, and nobody has it open


def test_a_search_that_kills_its_actors_is_given_up(pool: SearchPool) -> None:
    ended = pool.submit(Killer()).result()
    assert isinstance(ended.error, ClusterError)
    assert str(ended.error).startswith("2 actors died while they ran this search, last actor ")
    assert ended.deaths == 2
    until(lambda: pool.stats().actors == 2)


def test_a_node_that_is_lost_and_one_that_comes(pool: SearchPool, cluster: LocalCluster) -> None:
    works = [tiny_search(seed, tokens=96) for seed in range(200, 208)]
    results = pool.results(works)
    ended = [next(results)]
    cluster.kill(cluster.nodes[-1])
    ended += results
    assert texts(works, ended) == texts_here(works)
    until(lambda: pool.stats().actors == 1)
    cluster.add(1)
    until(lambda: pool.stats().actors == 2)
    more = [tiny_search(seed) for seed in range(4)]
    found = list(pool.results(more))
    assert texts(more, found) == texts_here(more)
    assert len({one.actor for one in found}) == 2


def test_another_decoder_on_each_actor(pool: SearchPool) -> None:
    generated = pool.stats().decoders.generated_tokens
    pool.renew(tiny_decoder)
    assert pool.stats().decoders.generated_tokens >= generated
    with pytest.raises(FileNotFoundError, match="no such model"):
        pool.renew(no_decoder)
    pool.renew(tiny_decoder)
    (ended,) = pool.results([tiny_search(3)])
    assert ended.result().answer == here(tiny_search(3)).answer


def test_a_pool_that_is_closed_leaves_no_process(
    cluster: LocalCluster, pool: SearchPool, tmp_path: Path
) -> None:
    processes = pool.ask(process)
    future = pool.submit(Endless(tmp_path))
    until((tmp_path / "began").exists)
    pool.close()
    assert future.cancelled()
    until(lambda: not any(Path(f"/proc/{number}").exists() for number in processes))
    with pytest.raises(ClusterError, match="the pool is closed"):
        pool.submit(tiny_search(0))
    pool.close()


def test_a_process_that_is_killed_leaves_no_actor(cluster: LocalCluster, tmp_path: Path) -> None:
    code = (
        "import sys, time; from cluster_work import process, tiny_decoder; "
        "from tts_decode.cluster import SearchPool; "
        "pool = SearchPool(tiny_decoder, address=sys.argv[1], actors=1); "
        "print(pool.ask(process)[0], flush=True); time.sleep(1000)"
    )
    driver = subprocess.Popen(
        [sys.executable, "-c", code, cluster.address], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert driver.stdout is not None
    actor = int(driver.stdout.readline())
    assert Path(f"/proc/{actor}").exists()
    driver.kill()
    driver.wait()
    until(lambda: not Path(f"/proc/{actor}").exists())
