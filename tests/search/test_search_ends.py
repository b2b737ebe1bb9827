"""Ends of a search: budgets, steps, finished roots, scorers that fail or hang, cancellation."""

import asyncio
import math

import pytest
from search_options import small_options
from tiny_searches import PROMPT, SCORED, levels, run, search, search_decoder
from tts_decode import Budget, gather
from tts_decode.search import STRATEGIES, SearchRun, get_strategy

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def decoder():
    return search_decoder()


@pytest.mark.parametrize("name", STRATEGIES)
def test_an_exhausted_budget_ends_with_the_best_so_far(decoder, name):
    budget = Budget(max_tokens=40)
    result = run(decoder, name, budget=budget)
    assert budget.tokens_used <= 40
    assert result.stopped is not None or all(c.complete for c in result.candidates)
    assert result.best.tokens
    family = get_strategy(name).family
    if family != "graphs" and name != "forest_of_thought":  # which may end between two prompts' answers
        assert any(not c.complete for c in result.candidates)


def test_a_budget_that_is_used_up_ends_every_search_before_it_begins(decoder):
    for name in STRATEGIES:
        budget = Budget(max_tokens=8)
        budget.tokens_used = 8
        before = decoder.stats().forward_tokens
        result = run(decoder, name, budget=budget)
        assert result.stopped == "the budget's max_tokens is used up"
        assert [candidate.tokens for candidate in result.candidates] == [()]
        assert decoder.stats().forward_tokens - before <= len(PROMPT)


@pytest.mark.parametrize("name", ["beam_search", "rebase", "ets"])
def test_max_steps_ends_with_unfinished_candidates(decoder, name):
    result = run(decoder, name, max_steps=2)
    assert len(levels(result.tree)) == 3
    assert any(c.finish_reason is None for c in result.candidates)
    assert result.best == max(result.candidates, key=lambda c: (c.complete, c.score))


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_finished_root_is_the_answer(decoder, name):
    async def finished_root():
        root = await decoder.root(PROMPT)
        await root.step()
        root.finish()
        text = root.text
        result = await get_strategy(name)(root, **small_options(name))
        root.release()
        return text, result

    text, result = decoder.run(finished_root())
    assert result.answer == text
    assert len(result.tree) == 1


@pytest.mark.parametrize("name", SCORED)
@pytest.mark.parametrize(
    ("values", "message"),
    [
        (lambda branches: [math.nan] * len(branches), r"scorer broken: got the score nan for branch \d+"),
        (lambda branches: [math.inf] * len(branches), r"scorer broken: got the score inf for branch \d+"),
        (lambda branches: [0.5] * (len(branches) + 1), r"scorer broken: got \d+ scores for \d+ branches"),
    ],
)
def test_bad_scores_name_the_scorer_and_leave_nothing(decoder, name, values, message):
    calls = 0

    async def broken(branches):
        nonlocal calls
        calls += 1
        return values(branches) if calls == 2 else [0.5] * len(branches)

    with pytest.raises(ValueError, match=message):
        run(decoder, name, scorer=broken)


@pytest.mark.parametrize("name", SCORED)
def test_a_failing_scorer_ends_the_search_with_what_it_has(decoder, name):
    calls = 0

    async def failing(branches):
        nonlocal calls
        calls += 1
        if calls == 3:
            raise OSError("reward server gone")
        return [0.5] * len(branches)

    result = run(decoder, name, scorer=failing)
    assert result.stopped == "scorer failing raised OSError: reward server gone"
    assert result.best.tokens


@pytest.mark.parametrize("name", SCORED)
def test_a_hanging_scorer_ends_the_search_with_what_it_has(decoder, name):
    async def hanging(branches):
        await asyncio.sleep(60)

    async def limited():
        root = await decoder.root(PROMPT)
        result = await get_strategy(name)(
            SearchRun(root, scorer_timeout=0.02), **(small_options(name) | {"scorer": hanging})
        )
        root.release()
        return result

    result = decoder.run(limited())
    assert result.stopped == "scorer hanging gave no scores within 0.02 s"
    assert result.best.tokens
    assert decoder.stats().branches == 0


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_cancelled_search_leaves_nothing(decoder, name):
    async def cancelled():
        root = await decoder.root(PROMPT)
        task = asyncio.ensure_future(get_strategy(name)(root, **small_options(name)))
        while decoder.stats().branches < (2 if name == "forest_of_thought" else 3):  # its trees grow in turn
            assert not task.done()
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert decoder.stats().branches == 1
        assert (await root.step()).tokens  # the root is untouched
        root.release()

    decoder.run(cancelled())
    assert decoder.stats().resident_bytes == 0


def test_one_failure_ends_the_searches_beside_it(decoder):
    async def both():
        await gather(search(decoder, "rebase"), search(decoder, "beam_search", beam_width=3))

    with pytest.raises(ValueError, match="beam_width: got 3, expected a divisor of n = 8"):
        decoder.run(both())
    assert decoder.stats().branches == 0
