"""A search cut off at any entry of its journal and resumed is the search that was not, its cost included."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from primitives import make
from search_options import SMALL, small_options
from transformers import PreTrainedModel
from tts_decode import Budget, SamplingParams
from tts_decode.search import Journal, SearchResult, SearchRun, get_strategy

SAMPLING = SamplingParams(stop=(".", "e", "\n"), max_tokens=24, max_step_tokens=8, seed=3)


def run_search(
    model: PreTrainedModel, name: str, path: Path | None, limits: dict[str, Any]
) -> tuple[SearchResult, Budget]:
    """On a decoder of its own, as in another process."""
    decoder = make(model)
    budget = Budget(**limits)

    async def search() -> SearchResult:
        root = await decoder.root("A prompt of more than a page of tokens. ", SAMPLING, budget)
        journal = None if path is None else Journal(path, resume=True)
        return await get_strategy(name)(SearchRun(root, journal=journal), **small_options(name))

    return decoder.run(search()), budget


# What they ask begins where the search does; prompts that are computed again may share more than they did.
WITHOUT_FURTHER_PROMPTS = (
    "best_of_n",
    "self_consistency",
    "rebase",
    "ets",
    "beam_search",
    "dvts",
    "mcts",
    "st_bon",
)
# Which of several calls that end in one forward comes first decides what they do.
BY_ARRIVAL = ("first_finish", "atts")


@pytest.mark.parametrize("name", [name for name in SMALL if name not in BY_ARRIVAL])
def test_a_resumed_search_is_the_uninterrupted_one(tmp_path: Path, model: PreTrainedModel, name: str) -> None:
    plain, spent = run_search(model, name, None, {})
    path = tmp_path / "journal"
    run_search(model, name, path, {})
    lines = path.read_bytes().splitlines(keepends=True)
    for kept in (random.Random(name).randrange(1, max(2, len(lines))), len(lines)):
        path.write_bytes(b"".join(lines[:kept]))
        result, budget = run_search(model, name, path, {})
        assert result.candidates == plain.candidates, kept
        assert result.tree == plain.tree, kept
        assert (result.best, result.votes, result.stopped) == (plain.best, plain.votes, plain.stopped), kept
        if name in WITHOUT_FURTHER_PROMPTS:
            assert budget.tokens_used == spent.tokens_used, kept
            assert budget.cost_used == pytest.approx(spent.cost_used, rel=1e-12), kept


@pytest.mark.parametrize("name", ["best_of_n", "ets", "beam_search"])
@pytest.mark.parametrize("limits", [{"max_tokens": 22}, {"max_cost": 3e9}], ids=str)
def test_a_resumed_search_ends_at_the_same_limit(
    tmp_path: Path, model: PreTrainedModel, name: str, limits: dict[str, Any]
) -> None:
    plain, spent = run_search(model, name, None, limits)
    assert plain.stopped is not None
    path = tmp_path / "journal"
    run_search(model, name, path, limits)
    lines = path.read_bytes().splitlines(keepends=True)
    for kept in range(1, len(lines) + 1, 3):
        path.write_bytes(b"".join(lines[:kept]))
        result, budget = run_search(model, name, path, limits)
        assert (result.candidates, result.tree, result.stopped) == (
            plain.candidates,
            plain.tree,
            plain.stopped,
        )
        assert budget.tokens_used == spent.tokens_used, kept
        assert budget.cost_used == pytest.approx(spent.cost_used, rel=1e-12), kept


def test_a_search_interrupted_twice(tmp_path: Path, model: PreTrainedModel) -> None:
    """What the second process wrote serves the third as what the first wrote served the second."""
    plain, spent = run_search(model, "best_of_n", None, {})
    path = tmp_path / "journal"
    run_search(model, "best_of_n", path, {})
    for kept in (9, 17, 25):
        lines = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(b"".join(lines[:kept]))
        result, budget = run_search(model, "best_of_n", path, {})
        assert (result.candidates, result.tree) == (plain.candidates, plain.tree)
        assert budget.cost_used == pytest.approx(spent.cost_used, rel=1e-12)
