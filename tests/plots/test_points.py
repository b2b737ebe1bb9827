"""A figure's content, computed by hand: points, lines, the Pareto front, equal cost, KV over time."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pages import SHEEP
from saved_runs import save_run, settings
from tts_decode.cli.saving import read_run
from tts_decode.plots import (
    MEASURES,
    Line,
    Point,
    SavedRun,
    all_failed,
    at_equal_cost,
    caption,
    draw_accuracy,
    kv_over_time,
    lines_of,
    pareto_front,
    places_of,
)
from tts_decode.search import KVSample, read_json
from tts_decode.select.statistics import Interval

TOKENS = MEASURES["tokens"]
SPARSE = {"budget": 0.125, "share": "branch"}


def saved(
    tmp_path: Path,
    about: dict[str, Any],
    solved: tuple[bool | None, ...] = (True, False, True, False),
    tokens: tuple[int, ...] = (10, 20, 30, 40),
    **others: Any,
) -> SavedRun:
    count = len(list(tmp_path.iterdir()))
    return read_run(save_run(tmp_path / f"run{count}" / "name.jsonl", about, solved, tokens, **others))


@pytest.mark.parametrize(
    ("measure", "mean"),
    [("tokens", 25), ("seconds", 2.5), ("eflops", 0.025), ("mean-kv", 25 / 1024), ("peak-kv", 50 / 1024)],
)
def test_a_point(tmp_path: Path, measure: str, mean: float) -> None:
    """Wilson's interval of 2 in 4 is 0.15 to 0.85."""
    ((point,),) = (line.points for line in lines_of([saved(tmp_path, settings())], MEASURES[measure]))
    assert point.accuracy == pytest.approx((0.5, 0.15004, 0.84996), abs=1e-5)
    assert point.cost.value == pytest.approx(mean)
    assert 0.4 * mean < point.cost.low < mean < point.cost.high < 1.6 * mean
    assert point.solved == {0: 1, 1: 0, 2: 1, 3: 0}
    assert (point.width, point.unfinished) == ("n=4", False)


def test_a_line_joins_widths_in_their_order(tmp_path: Path) -> None:
    runs = [saved(tmp_path, settings(n=n), tokens=(n,) * 4) for n in (16, 2, 8)]
    runs.append(saved(tmp_path, settings("ets", 2)))
    first, second = lines_of(runs, TOKENS)
    assert (first.label, [point.width for point in first.points]) == ("best_of_n", ["n=2", "n=8", "n=16"])
    assert [point.cost.value for point in first.points] == [2, 8, 16]
    assert all(math.isnan(point.cost.low) for point in first.points)
    assert (second.label, len(second.points)) == ("ets", 1)


def test_seeds_are_averaged_within_a_problem(tmp_path: Path) -> None:
    runs = [
        saved(tmp_path, settings(seed=0), (True, False, True, False), (10, 10, 10, 10)),
        saved(tmp_path, settings(seed=1), (True, True, False, False), (30, 10, 10, 10)),
    ]
    ((point,),) = (line.points for line in lines_of(runs, TOKENS))
    assert point.solved == {0: 1, 1: 0.5, 2: 0.5, 3: 0}
    assert point.costs == {0: 20, 1: 10, 2: 10, 3: 10}
    assert point.accuracy == pytest.approx((0.5, 0.15004, 0.84996), abs=1e-5)


def test_what_tells_lines_apart(tmp_path: Path) -> None:
    cold = {"sampling": {"temperature": 0.2, "seed": 0}}
    runs = [
        saved(tmp_path, settings(n=2)),
        saved(tmp_path, settings(n=4)),
        saved(tmp_path, settings(n=4) | cold),
        saved(tmp_path, settings(n=4, sparse=SPARSE)),
        saved(tmp_path, settings(n=4, sparse={"budget": 64, "share": "tree"})),
    ]
    assert [(place.name, place.sparse) for place in places_of(runs)] == [
        ("best_of_n, temperature=0.8", None),
        ("best_of_n, temperature=0.8", None),
        ("best_of_n, temperature=0.2", None),
        ("best_of_n, temperature=0.8", "1/8, share=branch"),
        ("best_of_n, temperature=0.8", "64 pages, share=tree"),
    ]
    assert places_of(runs)[0].label == "best_of_n, temperature=0.8, n=2"


def test_a_width_that_was_not_given_is_the_strategys_own(tmp_path: Path) -> None:
    """And without an n, what else goes up in numbers."""
    runs = [saved(tmp_path, settings() | {"options": {}})]
    assert lines_of(runs, TOKENS)[0].points[0].width == "n=16"
    budgets = [saved(tmp_path, settings(budget_tokens=count)) for count in (None, 900, 100)]
    assert [p.width for p in lines_of(budgets, TOKENS)[0].points] == [
        "budget_tokens=100",
        "budget_tokens=900",
        "no budget_tokens",
    ]


def test_the_cells_of_a_sweep_are_one_line(tmp_path: Path) -> None:
    """Their settings have the width a second time; seeds are pooled."""
    runs = [saved(tmp_path, settings(n=n, seed=seed) | {"width": n}) for n in (4, 2) for seed in (0, 1)]
    (line,) = lines_of(runs, TOKENS)
    assert (line.label, [p.width for p in line.points]) == ("best_of_n", ["n=2", "n=4"])
    assert [len(point.runs) for point in line.points] == [2, 2]


def test_a_line_goes_along_what_the_strategy_calls_its_width(tmp_path: Path) -> None:
    """Where another number differs too: that makes lines of its own."""
    runs = [
        saved(
            tmp_path,
            settings("mcts")
            | {"options": {"num_simulations": n}, "sampling": {"temperature": heat, "seed": 0}, "width": n},
        )
        for n in (8, 4)
        for heat in (0.5, 1.0)
    ]
    found = [(line.label, [p.width for p in line.points]) for line in lines_of(runs, TOKENS)]
    widths = ["num_simulations=4", "num_simulations=8"]
    assert found == [("mcts, temperature=0.5", widths), ("mcts, temperature=1.0", widths)]


def test_settings_of_which_every_search_failed(tmp_path: Path) -> None:
    """From every seed: n=2 failed from one alone."""
    runs = [
        saved(tmp_path, settings(n=n, seed=seed), failed=(0, 1, 2, 3) if (n, seed) != (2, 1) else ())
        for n in (2, 4)
        for seed in (0, 1)
    ]
    assert [(place.label, place.run.seed) for place in all_failed(runs)] == [
        ("best_of_n, n=4", 0),
        ("best_of_n, n=4", 1),
    ]


def test_searches_that_failed_count_as_not_solved_and_cost_nothing(tmp_path: Path) -> None:
    run = saved(tmp_path, settings(), failed=(0, 3))
    ((point,),) = (line.points for line in lines_of([run], TOKENS))
    assert (point.accuracy.value, point.costs) == (0.25, {1: 20, 2: 30})
    assert "2 searches failed: not solved, and of no cost here." in caption("", [run], []).notes


def test_a_run_under_way(tmp_path: Path) -> None:
    run = saved(tmp_path, settings(problems=9))
    assert lines_of([run], TOKENS)[0].points[0].unfinished
    assert "Hollow: unfinished (name 4 of 9)." in caption("", [run], []).notes
    assert lines_of([saved(tmp_path, settings(), (), ())], TOKENS) == []


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        ([(settings(), {}), (settings(), {})], "have the same settings and seed; give one of them"),
        ([(settings(), {"solved": (None,) * 4})], "without an answer to compare with: no accuracy"),
        ([(settings(), {"failed": (0, 1, 2, 3)})], "every search failed; no cost to draw"),
    ],
)
def test_no_points(tmp_path: Path, runs: list[tuple[dict[str, Any], dict[str, Any]]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lines_of([saved(tmp_path, about, **others) for about, others in runs], TOKENS)


def point(cost: float, *solved: float) -> Point:
    share = sum(solved) / len(solved)
    return Point(Interval(share, 0, 1), Interval(cost, cost, cost), dict(enumerate(solved)), {}, ())


def test_pareto_front() -> None:
    """(2, 1/4) costs more than (1, 1/4), (5, 1/2) solves less than (4, 3/4); equals are both there."""
    cheap, dear = point(1, 1, 0, 0, 0), point(2, 1, 0, 0, 0)
    good, twin, worse = point(4, 1, 1, 1, 0), point(4, 0, 1, 1, 1), point(5, 1, 1, 0, 0)
    assert pareto_front([worse, good, dear, twin, cheap]) == [cheap, good, twin]
    assert pareto_front([]) == []


def test_equal_cost() -> None:
    """They overlap from 100 to 200. At 200 the dense line is halfway on the logarithmic axis, at 100 the
    sparse one; the interval of (0.5, 0, 0, 0.5) is 0.25 -+ t(3) s / 2 with t(3) = 3.1824 and s = 0.28868."""
    dense = Line("ets", None, (point(100, 0, 0, 1, 0), point(400, 1, 0, 1, 1)))
    sparse = Line("ets", "1/8", (point(50, 0, 0, 0, 0), point(200, 1, 0, 1, 1)))
    first, second = at_equal_cost(sparse, dense)
    assert (first.cost, second.cost) == (100, 200)
    assert first.difference.value == pytest.approx((0.5 + 0 - 0.5 + 0.5) / 4)
    assert second.difference == pytest.approx((0.25, 0.25 - 0.45935, 0.25 + 0.45935), abs=1e-4)


def test_no_equal_cost() -> None:
    cheap = Line("ets", "1/8", (point(1, 1, 0), point(2, 1, 0)))
    dear = Line("ets", None, (point(3, 1, 0), point(4, 1, 0)))
    assert at_equal_cost(cheap, dear) == []
    assert at_equal_cost(Line("ets", None, (point(1, 1, 0),)), Line("ets", None, (point(1, 1, 0),))) == []


def test_nothing_to_draw(tmp_path: Path) -> None:
    about = caption("", [saved(tmp_path, settings())], [])
    lines = lines_of([saved(tmp_path, settings())], TOKENS)
    for given, theme, message in (([], "light", "nothing to draw"), (lines, "grey", "theme: got 'grey'")):
        with pytest.raises(ValueError, match=message):
            draw_accuracy(tmp_path / "a.svg", given, TOKENS, about, theme=theme)
    assert not (tmp_path / "a.svg").exists()


def test_kv_over_time() -> None:
    """A page of 16 tokens in 8 MiB: 32 tokens are 16 MiB."""
    sheep = read_json(SHEEP)
    samples = (KVSample(1.0, 2, 32, 3 << 20), KVSample(2.5, 1, 8, 1 << 20))
    stats = replace(sheep.stats, memory=samples, page_size=16, page_bytes=8 << 20)
    held = kv_over_time("ets", replace(sheep, stats=stats))
    assert (held.seconds, held.resident, held.unshared) == ((1.0, 2.5), (3.0, 1.0), (16.0, 4.0))
    for lacking in (replace(stats, memory=()), replace(stats, page_size=0)):
        with pytest.raises(ValueError, match="ets: its file has no"):
            kv_over_time("ets", replace(sheep, stats=lacking))
