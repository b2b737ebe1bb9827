"""The models of known accuracy of `benches.kinetics`, and its page."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import norm
from tts_decode.plots import at_equal_cost

from benches.kinetics import measured, page, scripted
from benches.kinetics.scripted import Size, accuracy, eflops, lines, shape, tokens_at_cost

SIZES = tuple(Size(1, 2**k) for k in range(7, 13))


@pytest.mark.parametrize("spread", [0.5, 2.0])
@pytest.mark.parametrize("tokens", [100, 8192, 100_000])
def test_accuracy_is_the_integral_over_all_problems(spread: float, tokens: int) -> None:
    def solved(z: float) -> float:
        hazard = math.log(2) / 8192 * math.exp(spread * z)
        return norm.pdf(z) * (1 - math.exp(-tokens * hazard))

    expected, _ = quad(solved, -10, 10, limit=200)
    assert accuracy(tokens, spread) == pytest.approx(expected, abs=2e-3)
    fewer, _ = quad(
        lambda z: norm.pdf(z) * -math.expm1(-tokens * 0.9 * math.log(2) / 8192 * math.exp(spread * z)),
        -10,
        10,
    )
    assert accuracy(tokens, spread, 0.9) == pytest.approx(fewer, abs=2e-3)


def test_cost_of_a_dense_chain_by_hand() -> None:
    """0.6B: 28 layers, 16 query heads, 8 KV heads of 128."""
    model, tokens = shape("0.6B"), 512 + np.arange(1, 200)  # lengths with the token that is fed
    pages = -(-tokens // 16)
    attention = (4 * 128 * 16 * 28 * tokens).sum() + 281.25 * (2 * 16 * 128 * 8 * 28 * 2 * pages).sum()
    weights = model.active_parameters - model.hidden * model.vocab
    steps = 2.0 * len(tokens) * model.active_parameters
    reads = 281.25 * 2 * model.active_parameters * (len(tokens) + 1) / 64
    keys = np.arange(1, 513)
    prompt = 2.0 * 512 * weights + 2.0 * model.hidden * model.vocab + (4 * 128 * 16 * 28 * keys).sum()
    prompt += 281.25 * 2 * 16 * 128 * 8 * 28 * 2 * 32
    expected = attention + steps + reads + prompt
    assert eflops("0.6B", Size(1, 200), False) == pytest.approx(expected, rel=1e-9)


def test_tokens_at_a_cost() -> None:
    for size in SIZES[1:4]:
        assert tokens_at_cost("8B", SIZES, eflops("8B", size, True), sparse=True) == pytest.approx(size.total)
    middle = math.sqrt(eflops("8B", SIZES[1], False) * eflops("8B", SIZES[2], False))
    expected = math.sqrt(SIZES[1].total * SIZES[2].total)
    assert tokens_at_cost("8B", SIZES, middle, sparse=False) == pytest.approx(expected)
    with pytest.raises(ValueError, match="cost: got 1, expected"):
        tokens_at_cost("8B", SIZES, 1.0, sparse=False)


def test_equal_cost_of_drawn_problems_is_near_the_models_own() -> None:
    """The exact difference lies in the 95 % interval in about 95 % of the draws."""
    cost = eflops("0.6B", SIZES[4], False)
    got = tokens_at_cost("0.6B", SIZES, cost, sparse=True)
    exact = accuracy(got, 1.0, 0.9) - accuracy(SIZES[4].total, 1.0)
    inside, draws = 0, 40
    for seed in range(draws):
        dense, sparse = lines("0.6B", SIZES, 1.0, 400, kept=0.9, seed=seed)
        (at,) = [e for e in at_equal_cost(sparse, dense) if e.cost == pytest.approx(cost / 1e12)]
        assert at.difference.low is not None
        assert at.difference.high is not None
        inside += at.difference.low <= exact <= at.difference.high
    assert inside >= 33  # of 40 at 95 %: fewer once in 4,000 times


def test_commands_are_ones_that_the_command_takes(tmp_path: Path) -> None:
    found = list(measured.commands(tmp_path, 24))
    assert len({tuple(c) for c in found}) == len(found) == 10
    assert all("--resume" in c and "--sparse" in c for c in found)


def test_the_committed_page_is_that_of_the_committed_record() -> None:
    root = Path(__file__).parents[2]
    text = (root / "docs/kinetics.md").read_text(encoding="utf-8")
    record = json.loads((root / "benches/results/kinetics.json").read_text(encoding="utf-8"))
    assert page.filled(text, record) == text


def test_a_point_beyond_the_sparse_line_has_no_difference() -> None:
    side = {"accuracy": 0.5, "low": 0.4, "high": 0.6, "cost": 1.5}
    kinds = {"chains": [{"size": "64", "dense": side, "sparse": side | {"cost": 0.7}, "difference": None}]}
    last = page.measured_table(kinds).splitlines()[-1]
    assert last == "| chains | 64 | 50% (40% to 60%) | 1.50 | 50% (40% to 60%) | 0.70 |  |"
    assert scripted.MEDIAN_TOKENS == 8192
