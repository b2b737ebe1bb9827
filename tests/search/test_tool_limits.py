"""If a caller's tool, retriever or test hangs, its search continues or ends, and others continue."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest
from scripted import scripted_decoder
from search_options import small_options
from tts_decode import Budget, gather
from tts_decode.search import SearchRun, best_of_n, get_strategy

HUNG = 600.0


def coder(prefix, k):
    """A block of code behind a hint, an answer elsewhere."""
    if prefix.endswith("```"):
        return f"code {len(prefix)}```", "stop_string"
    return f"So, but {len(prefix) % 10}.", "eos"


def hangs(asked):
    time.sleep(HUNG)


async def waits(asked):
    await asyncio.sleep(HUNG)


async def blocks(asked):
    time.sleep(HUNG)


def search(name, *, budget=None, limit=None, **options):
    decoder = scripted_decoder(coder)

    async def searched():
        root = await decoder.root("Q: ", budget=budget)
        try:
            return await get_strategy(name)(
                SearchRun(root, tool_timeout=limit), **(small_options(name) | options)
            )
        finally:
            root.release()

    began = time.monotonic()
    result = decoder.run(searched())
    assert time.monotonic() - began < 20
    assert decoder.stats().branches == 0
    return result


@pytest.mark.parametrize("tool", [hangs, waits, blocks])
def test_the_output_of_a_tool_that_hangs_says_so(tool):
    result = search("hint_infer", n=1, num_forks=0, hints=["```"], tool=tool, limit=0.05)
    assert "```output\ntool gave nothing within 0.05 s\n```" in result.answer
    assert result.stopped is None


@pytest.mark.parametrize("retrieve", [hangs, waits, blocks])
def test_a_retriever_that_hangs_ends_the_search_with_what_it_has(retrieve):
    result = search("atlas", n=1, retrieve=retrieve, limit=0.05)
    assert result.stopped == "retrieve gave nothing within 0.05 s"
    assert result.best.tokens


@pytest.mark.parametrize("tool", [hangs, waits, blocks])
def test_the_seconds_of_a_budget_hold_for_tools(tool):
    result = search("hint_infer", n=1, num_forks=0, hints=["```"], tool=tool, budget=Budget(max_seconds=0.2))
    assert result.stopped == "the budget's max_seconds is used up"


def test_tools_that_hang_leave_room_for_those_of_others(monkeypatch):
    """More of them than there are threads for tools, in other searches."""
    monkeypatch.setattr("tts_decode.search.outside._AT_A_TIME", 2)
    decoder = scripted_decoder(coder)
    running, most = set(), 0

    def slow(code):
        nonlocal most
        running.add(threading.get_ident())
        most = max(most, len(running))
        time.sleep(0.01)
        running.discard(threading.get_ident())
        return "7"

    async def one(tool):
        root = await decoder.root("Q: ")
        options = small_options("hint_infer") | {"n": 1, "num_forks": 0, "hints": ["```"], "tool": tool}
        try:
            return await get_strategy("hint_infer")(SearchRun(root, tool_timeout=0.5), **options)
        finally:
            root.release()

    async def together():
        return await gather(one(tool) for tool in (hangs, hangs, hangs, slow, slow, slow, slow))

    results = decoder.run(together())
    assert [("gave nothing" in result.answer) for result in results] == [True] * 3 + [False] * 4
    assert all("```output\n7\n```" in result.answer for result in results[3:])
    assert 1 <= most <= 2


@pytest.mark.parametrize("limit", [0, -1.0, float("nan"), "1", True])
def test_a_limit_is_a_number_of_seconds(limit):
    async def made():
        root = await scripted_decoder(coder).root("Q: ")
        await best_of_n(SearchRun(root, tool_timeout=limit), n=1)

    with pytest.raises((TypeError, ValueError), match=r"tool_timeout: got .*, expected a number of seconds"):
        asyncio.run(made())
