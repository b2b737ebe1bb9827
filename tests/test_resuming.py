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


@pytest.mark.parametrize("limits", [{}, {"max_tokens": 90}, {"max_cost": 3e9}], ids=str)
@pytest.mark.parametrize("name", SMALL)
def test_a_resumed_search_is_the_uninterrupted_one(
    tmp_path: Path, model: PreTrainedModel, name: str, limits: dict[str, Any]
) -> None:
    plain, plain_budget = run_search(model, name, None, limits)
    path = tmp_path / "journal"
    run_search(model, name, path, limits)
    lines = path.read_bytes().splitlines(keepends=True)
    places = random.Random(name).sample(range(1, len(lines)), min(6, len(lines) - 1))
    for kept in [*places, len(lines)]:
        path.write_bytes(b"".join(lines[:kept]))
        result, budget = run_search(model, name, path, limits)
        assert result.candidates == plain.candidates, kept
        assert result.tree == plain.tree, kept
        assert (result.best, result.votes, result.stopped) == (plain.best, plain.votes, plain.stopped), kept
        assert budget.tokens_used == plain_budget.tokens_used, kept
        assert budget.cost_used == pytest.approx(plain_budget.cost_used, rel=1e-12), kept
