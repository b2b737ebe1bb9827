"""Every strategy names its source, says where it leaves it, and says first what it lacks of it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tts_decode.search import STRATEGIES, Strategy

OURS = {name: made for name, made in STRATEGIES.items() if made.family != "own"}  # not those of other tests
PAGE = Path(__file__).parents[2] / "docs/strategies.md"
ROWS = dict(
    re.findall(r"^\| \[`(\w+)`\]\([^)]*\) \| (.*) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
)
ARXIV = re.compile(r"arXiv\s+(\d{4}\.\d{5})")
ELSEWHERE = {"dvts": "search-and-learn", "lm_beam_search": "transformers"}  # sources that are code


@pytest.fixture(params=OURS.values(), ids=lambda made: made.name)
def strategy(request: pytest.FixtureRequest) -> Strategy[...]:
    made: Strategy[...] = request.param
    return made


def test_it_names_its_source_and_its_row_the_same(strategy: Strategy[...]) -> None:
    said = strategy.body.__doc__ or ""
    papers = set(ARXIV.findall(said))
    assert papers or ELSEWHERE[strategy.name] in said
    assert set(ARXIV.findall(ROWS[strategy.name])) <= papers


def test_it_says_where_it_departs(strategy: Strategy[...]) -> None:
    assert re.search(r"\bDepartures?[.:]", strategy.body.__doc__ or "")


def test_its_first_line_and_its_row_say_what_it_lacks(strategy: Strategy[...]) -> None:
    first, *_ = (strategy.body.__doc__ or "").split("\n")
    departures = ROWS[strategy.name].split(" | ")[2]
    assert ("; lacks " in first) == departures.startswith("lacks "), f"{first} / {departures}"
    assert first.endswith(".") or "; lacks " not in first  # it fits into the line


def test_each_row_is_of_a_strategy() -> None:
    assert set(ROWS) == set(OURS)
