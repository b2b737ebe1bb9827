"""Results of a sweep's searches: estimates, intervals, budgets, and the tables."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
from tts_decode.errors import ResultFileError
from tts_decode.select.statistics import wilson_interval
from tts_decode.sweeps import (
    Sample,
    Search,
    budgets_at,
    estimates,
    mean_interval,
    read_sweep,
    write_tables,
)


def search(problem: int, solved: bool, right: str = "", *, width: int = 2, seed: int = 0, **others) -> Search:
    """right: a mark a candidate, 1 for right; all right ones answer 0, each wrong one something else."""
    samples = tuple(Sample(mark == "1", 0 if mark == "1" else i + 1, 0.5) for i, mark in enumerate(right))
    about = (f"s-width{width}-seed{seed}", "s", width, seed, False, problem, f"task {problem}", solved)
    return Search(*about, samples=samples, **others)


def values(found) -> dict[str, float]:
    return {estimate.name: estimate.interval.value for estimate in found}


def test_estimates_are_means_over_problems_of_means_over_seeds() -> None:
    searches = [
        *(search(0, True, "11"), search(1, False, "10")),
        *(search(0, False, "10", seed=1), search(1, False, "00", seed=1)),
    ]
    found = estimates(searches)
    # Problem 0: 1 and 0 solved; problem 1: none. One of a pair: 1, 1/2; 1/2, 0. Both: 1, 1; 1, 0.
    # A vote of two that differ is a tie; so is the choice of equal scores.
    assert values(found) == pytest.approx(
        {
            **{"solved": 1 / 4, "pass@1": (3 / 4 + 1 / 4) / 2, "pass@2": (1 + 1 / 2) / 2},
            **{"maj@1": 1 / 2, "maj@2": (3 / 4 + 1 / 4) / 2, "weighted@1": 1 / 2, "weighted@2": 1 / 2},
            **{"naive@1": 1 / 2, "naive@2": 1 / 2},
        }
    )
    assert {(e.problems, e.searches, e.fewer, e.error) for e in found} == {(2, 4, 0, 0.0)}
    assert {e.method for e in found} == {"bca"}


def test_a_search_with_fewer_candidates_is_taken_whole() -> None:
    failed = search(1, False, error="ValueError: no")
    found = estimates([search(0, True, "1"), failed], [1, 2])
    assert values(found)["pass@2"] == 0.5
    assert {e.k: e.fewer for e in found if e.measure == "pass"} == {1: 1, 2: 2}
    assert estimates([failed]) == []


def test_without_scores_nothing_is_weighted() -> None:
    bare = search(0, True, "10")
    bare = replace(bare, samples=tuple(replace(sample, score=None) for sample in bare.samples))
    assert values(estimates([bare])).keys() == {"solved", "pass@1", "pass@2", "maj@1", "maj@2"}


def test_a_candidate_that_was_cut_off_neither_votes_nor_leads() -> None:
    cut = Sample(False, None, 9.0)
    found = values(estimates([replace(search(0, True, "1"), samples=(cut, Sample(True, 1, 0.1)))]))
    assert (found["maj@2"], found["weighted@2"], found["naive@2"], found["pass@1"]) == (1, 1, 1, 0.5)


def test_negative_scores_weigh_by_their_exponentials() -> None:
    samples = (Sample(True, 0, -1.0), Sample(False, 1, -2.0), Sample(False, 1, -2.5))
    found = values(estimates([replace(search(0, True), samples=samples, width=3)]))
    assert math.exp(-1) > math.exp(-2) + math.exp(-2.5)
    assert (found["weighted@3"], found["maj@3"], found["naive@3"]) == (1, 0, 1)


def test_intervals_by_what_the_values_are() -> None:
    interval, method = mean_interval([1, 0, 0, 1])
    assert (interval, method) == (wilson_interval(2, 4), "wilson")
    interval, method = mean_interval([0.25, 0.5, 0.75, 0.5, 0.0, 1.0, 0.5, 0.25])
    assert method == "bca"
    assert 0 < interval.low < interval.value == 15 / 32 < interval.high < 1
    assert mean_interval([0.25, 0.5, 0.75]) == mean_interval([0.25, 0.5, 0.75])
    interval, method = mean_interval([0.5, 0.5])
    assert method == "none"
    assert math.isnan(interval.low)
    with pytest.raises(ValueError, match=r"values\[1\]: got 2, expected a number from 0 to 1"):
        mean_interval([0.5, 2])


def test_the_bootstrap_covers_the_mean() -> None:
    """The interval covers the mean in about 95 of 100 draws; fewer than 85 would be one in thousands."""
    import numpy as np

    rng = np.random.default_rng(3)
    found = [mean_interval(rng.random(20).tolist()).interval for _ in range(100)]
    assert sum(interval.low <= 0.5 <= interval.high for interval in found) >= 85


def test_the_cheapest_width_that_meets_the_target() -> None:
    wide = {"tokens": 90, "seconds": 2.0, "peak_kv_bytes": 30.0}
    searches = [
        *(search(i, i < 2, width=2, tokens=10, seconds=1.0, peak_kv_bytes=40.0) for i in range(4)),
        *(search(i, i < 3, width=4, tokens=50, seconds=3.0, peak_kv_bytes=60.0) for i in range(4)),
        *(search(i, True, width=8, **wide) for i in range(4)),
    ]
    found = {budget.unit: budget for budget in budgets_at(searches, 0.75)}
    assert (found["tokens"].width, found["tokens"].amount) == (4, 50)
    assert (found["seconds"].width, found["seconds"].amount) == (8, 2.0)
    assert (found["peak_kv_bytes"].width, found["peak_kv_bytes"].amount) == (8, 30.0)
    assert not found["tokens"].sure  # 3 of 4 say little
    assert {budget.width for budget in budgets_at(searches[:4], 0.75)} == {None}
    with pytest.raises(ValueError, match="target: got 75, expected a share of the problems"):
        budgets_at(searches, 75)


def test_tables_are_read_as_they_were(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    searches = [
        search(0, True, "110"),
        search(1, False, error="ValueError: no"),
        search(0, False, "0", seed=1),
    ]
    searches[0] = replace(searches[0], samples=(*searches[0].samples, Sample(False)))
    write_tables(tmp_path, searches, estimates(searches), budgets_at(searches, 1.0))
    assert read_sweep(tmp_path) == searches
    import pyarrow.parquet as parquet

    rows = parquet.read_table(tmp_path / "sweep-estimates.parquet").to_pylist()
    assert [(row["measure"], row["k"], row["value"]) for row in rows] == [
        (e.measure, e.k, e.interval.value) for e in estimates(searches)
    ]
    assert parquet.read_table(tmp_path / "sweep-budgets.parquet").to_pylist()[0]["width"] is None


def test_what_is_no_table_is_named(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    with pytest.raises(ResultFileError, match=r"sweep-samples\.parquet: cannot be read"):
        read_sweep(tmp_path)
    write_tables(tmp_path, [], [])
    (tmp_path / "sweep-samples.parquet").write_bytes((tmp_path / "sweep-budgets.parquet").read_bytes())
    with pytest.raises(ResultFileError, match="so it is no table of a sweep"):
        read_sweep(tmp_path)
    (tmp_path / "sweep-samples.parquet").write_text("no Parquet")
    with pytest.raises(ResultFileError, match="cannot be read"):
        read_sweep(tmp_path)
