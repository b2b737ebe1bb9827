"""A pool begins with the first actor that has its decoder; the others join, or are reported and left out."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from busy_nodes import in_use
from cluster_work import DecoderOfTurn, here, no_decoder, other_decoder, tiny_decoder, tiny_search
from tts_decode.cluster import SearchPool
from tts_decode.errors import ClusterError

from benches.local_cluster import LocalCluster

_NODE = r"node \S+( \S+)? [0-9a-f]{8}"


def until(condition: Callable[[], bool], seconds: float = 240) -> None:
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends, "it takes too long"
        time.sleep(0.05)


def runs(pool: SearchPool, seed: int) -> None:
    (ended,) = pool.results([tiny_search(seed)])
    assert ended.result().answer == here(tiny_search(seed)).answer


def calls(folder: Path) -> int:
    """Counts the calls that `DecoderOfTurn` noted after the first one."""
    file = folder / "calls"
    return len(file.read_text().splitlines()) if file.exists() else 0


def test_the_pool_begins_with_the_first_actor_and_the_other_joins(
    cluster: LocalCluster, tmp_path: Path
) -> None:
    with SearchPool(DecoderOfTurn(tmp_path, tiny_decoder)) as pool:
        assert (pool.stats().actors, pool.stats().wanted) == (1, 2)
        runs(pool, 0)
        until((tmp_path / "calls").exists)
        assert pool.stats().actors == 1
        pool.renew(tiny_decoder)  # the other one makes such a decoder too, after its own
        (tmp_path / "go").touch()
        until(lambda: pool.stats().actors == 2)
        works = [tiny_search(seed) for seed in range(8)]
        assert len({ended.actor for ended in pool.results(works)}) == 2
        assert (pool.stats().wanted, pool.stats().lost) == (2, 0)
    assert calls(tmp_path) == 1


def test_an_actor_that_does_not_start_is_given_up_and_tried_again(
    cluster: LocalCluster, caplog: pytest.LogCaptureFixture
) -> None:
    with in_use(cluster, 1) as free, SearchPool(tiny_decoder, start_seconds=60) as pool:
        assert (pool.stats().actors, pool.stats().wanted) == (1, 2)
        until(lambda: pool.stats().lost == 1)
        until(lambda: bool(caplog.records))
        runs(pool, 1)
        free()
        until(lambda: pool.stats().actors == 2)
        (record,) = caplog.records
        assert record.levelno == logging.WARNING
        assert re.fullmatch(
            rf"actor \d on {_NODE} has no decoder after 60 s: {_NODE} \(1 core\) may be in use by others, or "
            "it takes longer; raise start_seconds, or ask for less; another one is tried",
            record.getMessage(),
        )


def test_no_actor_starts(cluster: LocalCluster) -> None:
    told: list[str] = []
    began = time.monotonic()
    with (
        in_use(cluster, 0, 1),
        pytest.raises(
            ClusterError,
            match=rf"^2 actors have no decoder after 5 s: {_NODE} \(1 core\), {_NODE} \(1 core\) may be",
        ),
    ):
        SearchPool(tiny_decoder, start_seconds=5, on_wait=told.append)
    assert time.monotonic() - began < 60
    assert re.fullmatch(
        rf"waiting 2 s for the first of 2 actors: {_NODE} \(1 core\), {_NODE} \(1 core\)", told[0]
    )


def test_ctrl_c_while_the_pool_waits_leaves_no_actor(cluster: LocalCluster) -> None:
    def interrupt(told: str) -> None:
        raise KeyboardInterrupt

    with in_use(cluster, 1), pytest.raises(KeyboardInterrupt):
        SearchPool(tiny_decoder, on_wait=interrupt)
    with in_use(cluster, 0, 1):  # nothing of the pool has their cores, or waits for them
        until(lambda: not cluster.actors())


def test_a_decoder_that_cannot_be_made_is_told(cluster: LocalCluster) -> None:
    with pytest.raises(
        ClusterError,
        match=rf"actor \d on {_NODE} has no decoder: FileNotFoundError: no such model: /models/none",
    ):
        SearchPool(no_decoder)
    until(lambda: not cluster.actors())


def test_a_later_actor_of_another_model_is_refused_by_name(
    cluster: LocalCluster, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with SearchPool(DecoderOfTurn(tmp_path, other_decoder)) as pool:
        runs(pool, 2)
        (tmp_path / "go").touch()
        until(lambda: pool.stats().wanted == 1)
        runs(pool, 3)
        assert pool.stats().actors == 1
    assert calls(tmp_path) == 1, "its node gets no other"
    (record,) = caplog.records
    assert re.fullmatch(
        rf"actor \d on {_NODE} is not like actor \d on {_NODE}, which has weights [0-9a-f]{{8}}, there "
        r"[0-9a-f]{8}: .* put the same model on all nodes; the node gets no more",
        record.getMessage(),
    )


def test_a_node_where_no_decoder_can_be_made_is_left_out(
    cluster: LocalCluster, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """After three actors, of which the first and the last are told."""
    with SearchPool(DecoderOfTurn(tmp_path, no_decoder)) as pool:
        (tmp_path / "go").touch()
        # A node counts as full, and so as not wanted, until Ray knows that its last actor is gone.
        until(lambda: calls(tmp_path) == 3 and pool.stats().wanted == 1)
        runs(pool, 4)
        assert pool.stats().actors == 1
    assert calls(tmp_path) == 3
    first, last = (record.getMessage() for record in caplog.records)
    error = rf"actor \d on {_NODE} has no decoder: FileNotFoundError: no such model: /models/none; "
    assert re.fullmatch(error + "another one is tried", first)
    assert re.fullmatch(error + "the node gets no more", last)
