"""A search cut off at any entry of its journal and resumed is the search that was not, its cost included."""

from __future__ import annotations

import asyncio
import random
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from primitives import make
from search_options import SMALL, small_options
from transformers import PreTrainedModel
from tts_decode import Budget, SamplingParams
from tts_decode.core.running import first_of
from tts_decode.errors import PromptTooLongError
from tts_decode.search import STRATEGIES, Journal, SearchResult, SearchRun, get_strategy, strategy

SAMPLING = SamplingParams(stop=(".", "e", "\n"), max_tokens=24, max_step_tokens=8, seed=3)

Outcome = tuple[SearchResult, Budget]


def run_search(
    model: PreTrainedModel,
    name: str,
    path: Path | None,
    limits: dict[str, Any] | None = None,
    *,
    body: Any = None,
    **options: Any,
) -> Outcome:
    """On a decoder of its own, as in another process. body: a strategy of a test's own."""
    decoder = make(model, **options)
    budget = Budget(**(limits or {}))

    async def search() -> SearchResult:
        root = await decoder.root("A prompt of more than a page of tokens. ", SAMPLING, budget)
        journal = None if path is None else Journal(path, resume=True)
        run = SearchRun(root, journal=journal)
        return await (get_strategy(name)(run, **small_options(name)) if body is None else body(run))

    return decoder.run(search()), budget


def check_same(resumed: Outcome, uninterrupted: Outcome, kept: int) -> None:
    (result, budget), (plain, spent) = resumed, uninterrupted
    assert result.candidates == plain.candidates, kept
    assert result.tree == plain.tree, kept
    assert (result.best, result.votes, result.stopped) == (plain.best, plain.votes, plain.stopped), kept
    assert budget.tokens_used == spent.tokens_used, kept
    assert budget.cost_used == pytest.approx(spent.cost_used, rel=1e-12), kept


def check_cuts(
    path: Path, model: PreTrainedModel, name: str, cuts: int, *limits: dict[str, Any], **options: Any
) -> Outcome:
    """Resumes from the first lines of the journal, of which it takes so many numbers, one at random from each
    of as many parts: early, middle, late. Returns the search without a journal."""
    plain = run_search(model, name, None, *limits, **options)
    check_same(run_search(model, name, path, *limits, **options), plain, -1)
    lines = path.read_bytes().splitlines(keepends=True)
    rng = random.Random(f"{name} {limits} {cuts}")
    bounds = [2 + (len(lines) - 1) * part // cuts for part in range(cuts + 1)]
    for begin, end in pairwise(bounds):
        kept = rng.randrange(begin, max(end, begin + 1))
        path.write_bytes(b"".join(lines[:kept]))
        check_same(run_search(model, name, path, *limits, **options), plain, kept)
    return plain


@pytest.mark.parametrize("name", SMALL)
def test_a_resumed_search_is_the_uninterrupted_one(tmp_path: Path, model: PreTrainedModel, name: str) -> None:
    """One cut each, which for one strategy in five is behind the last entry."""
    path = tmp_path / "journal"
    plain = run_search(model, name, path)
    lines = path.read_bytes().splitlines(keepends=True)
    rng = random.Random(name)
    kept = len(lines) if rng.random() < 0.2 else rng.randrange(2, len(lines) + 1)
    path.write_bytes(b"".join(lines[:kept]))
    check_same(run_search(model, name, path), plain, kept)


# What they do depends on which call ends first; they ask the model for all tokens; they make further prompts.
@pytest.mark.parametrize("name", ["first_finish", "atts", "lm_beam_search", "knockout"])
def test_early_middle_and_late_cuts(tmp_path: Path, model: PreTrainedModel, name: str) -> None:
    check_cuts(tmp_path / "journal", model, name, 3)


def test_prompts_that_go_in_chunks_and_branches_that_take_turns(
    tmp_path: Path, model: PreTrainedModel
) -> None:
    """A forward has fewer rows than are wanted, so who is served depends on who waits in which order."""
    check_cuts(tmp_path / "journal", model, "knockout", 3, max_batch_tokens=4)


@pytest.mark.parametrize("name", ["best_of_n", "ets", "beam_search", "b4"])
@pytest.mark.parametrize("limits", [{"max_tokens": 22}, {"max_cost": 3e9}], ids=str)
def test_a_resumed_search_ends_at_the_same_limit(
    tmp_path: Path, model: PreTrainedModel, name: str, limits: dict[str, Any]
) -> None:
    plain, _ = check_cuts(tmp_path / "journal", model, name, 2, limits)
    assert plain.stopped is not None


def test_a_search_interrupted_twice(tmp_path: Path, model: PreTrainedModel) -> None:
    """What the second process wrote serves the third as what the first wrote served the second."""
    for name, cuts in {"best_of_n": (9, 17), "knockout": (4, 12, 30)}.items():
        plain = run_search(model, name, None)
        path = tmp_path / name
        run_search(model, name, path)
        for kept in cuts:
            lines = path.read_bytes().splitlines(keepends=True)
            path.write_bytes(b"".join(lines[:kept]))
            check_same(run_search(model, name, path), plain, kept)


def test_a_scorer_that_was_asking_the_model(tmp_path: Path, model: PreTrainedModel) -> None:
    """Questions that a scorer asked are not in the journal; those of one that was interrupted are asked again
    and cost nothing."""

    async def scorer(branches: Any) -> list[float]:
        scores = []
        for branch in branches:
            copy = branch.copy()
            await copy.extend(" Is that right? ")
            scores.append(float((await copy.next_logprobs([89]))[0]))
            await asyncio.sleep(0)
            scores[-1] += float((await copy.next_logprobs([78]))[0])
            copy.release()
        return scores

    async def scored(run: SearchRun) -> SearchResult:
        async def one(branch: Any) -> None:
            while not branch.finished:
                await run.step([branch])
                await run.score([branch], scorer)

        await asyncio.gather(*(one(branch) for branch in run.fork(run.root, 3)))
        return await run.result()

    made = strategy("for this test")(scored)
    del STRATEGIES["scored"]
    check_cuts(tmp_path / "journal", model, "asking scorer", 5, body=made)


def test_what_cancelled_calls_had_sampled(tmp_path: Path, model: PreTrainedModel) -> None:
    """It is in the tree, and the search may continue from it."""

    async def races(run: SearchRun) -> SearchResult:
        branches = run.fork(run.root, 4)
        for _ in range(3):
            await first_of(run.step([branch]) for branch in branches if not branch.finished)
        return await run.result()

    made = strategy("for this test")(races)
    del STRATEGIES["races"]
    plain, _ = check_cuts(tmp_path / "journal", model, "races", 4, body=made)
    assert min(len(candidate.tokens) for candidate in plain.candidates) > SAMPLING.max_step_tokens


def test_a_prompt_that_was_too_long_is_so_again(tmp_path: Path, model: PreTrainedModel) -> None:
    refused = 0

    async def stubborn(run: SearchRun) -> SearchResult:
        nonlocal refused
        branches = run.fork(run.root, 2)
        for branch in branches:
            await run.step([branch])
            try:
                await run.prompt("x" * 600)
            except PromptTooLongError:
                refused += 1
            await run.step([branch])
        return await run.result()

    made = strategy("for this test")(stubborn)
    del STRATEGIES["stubborn"]
    check_cuts(tmp_path / "journal", model, "stubborn", 3, body=made)
    assert refused == 2 * 5  # two searches to the end, and three resumed ones


def test_next_logprobs_leave_the_branch_as_they_did(tmp_path: Path, model: PreTrainedModel) -> None:
    """They feed the branch's last token, which the next step then does not."""

    async def asking(run: SearchRun) -> SearchResult:
        (branch,) = run.fork(run.root)
        for _ in range(2):
            await run.step([branch])
            branch.scores += await run.next_logprobs(branch, [65])
        return await run.result()

    made = strategy("for this test")(asking)
    del STRATEGIES["asking"]
    check_cuts(tmp_path / "journal", model, "asking", 4, body=made)


def test_a_budget_that_is_paused_stands_still() -> None:
    budget = Budget(max_tokens=10, max_seconds=50.0)
    budget.start()
    budget.count(2)
    budget.pause()
    budget.count(100)
    budget.charge(1e6, 1e6)
    assert (budget.tokens_used, budget.cost_used, budget.spent) == (2, 0.0, None)
    before = budget.seconds_used
    time.sleep(0.01)
    assert budget.seconds_used == before
    budget.set_used(9, 5.0, 49.0)
    assert (budget.tokens_used, budget.cost_used, budget.seconds_used) == (9, 5.0, 49.0)
    budget.go_on()
    budget.count(1)
    budget.charge(3.0, 0.0)
    assert (budget.tokens_used, budget.cost_used, budget.spent) == (10, 8.0, "max_tokens")
    assert budget.seconds_used >= 49.0
