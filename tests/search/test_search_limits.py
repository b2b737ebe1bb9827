"""When positions, pages or the budget run out, every strategy ends with what it has and says why."""

from __future__ import annotations

import pytest
from journaled import unregistered
from search_options import small_options
from tiny_models import byte_tokenizer, tiny_model
from tts_decode import Branch, Budget, SamplingParams, TreeDecoder
from tts_decode.search import STRATEGIES, SearchResult, SearchRun, get_strategy

pytestmark = pytest.mark.usefixtures("one_thread")

POSITIONS = 512
SAMPLING = SamplingParams(max_tokens=24, max_step_tokens=6, seed=5)
PAGE_BYTES = 24_576  # 3 layers, 2 KV heads of 32, K and V, 16 tokens, float32


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def decoder(model):
    return TreeDecoder(model, byte_tokenizer(), kv_bytes=64 << 20, sampling=SAMPLING)


def prompt(length: int) -> list[int]:
    return [ord("A") + i % 26 for i in range(length)]


def searched(decoder: TreeDecoder, name: str, length: int, budget: Budget | None = None) -> SearchResult:
    """The result, which is whole; nothing of the search is left."""

    async def search() -> SearchResult:
        root = await decoder.root(prompt(length), budget=budget)
        try:
            return await get_strategy(name)(root, **small_options(name))
        finally:
            root.release()

    result = decoder.run(search())
    assert result.strategy == name
    assert result.best.text == result.answer
    assert result.candidates
    assert (decoder.stats().branches, decoder.stats().resident_bytes) == (0, 0)
    assert result.stopped or any(candidate.tokens for candidate in result.candidates)
    return result


@pytest.mark.parametrize("length", [505, 511, 512])
@pytest.mark.parametrize("name", STRATEGIES)
def test_near_the_models_last_position(decoder: TreeDecoder, name: str, length: int) -> None:
    result = searched(decoder, name, length)
    for candidate in result.candidates:
        assert candidate.complete or result.stopped
    if length == POSITIONS:
        assert result.stopped == "the root's 512 tokens fill the model's 512 positions"
        assert result.answer == ""


@pytest.mark.parametrize("length", range(489, 511, 3))
@pytest.mark.parametrize(
    "name", ["atts", "no_thinking", "budget_forcing", "revise", "sets", "hint_infer", "archon"]
)
def test_forced_texts_and_prompts_that_just_fit_or_do_not(
    decoder: TreeDecoder, name: str, length: int
) -> None:
    searched(decoder, name, length)


@pytest.mark.parametrize("limit", [{"max_tokens": 2}, {"max_tokens": 30}, {"max_cost": 1e8}])
@pytest.mark.parametrize("name", STRATEGIES)
def test_a_budget_that_is_used_up(decoder: TreeDecoder, name: str, limit: dict[str, float]) -> None:
    result = searched(decoder, name, 40, Budget(**limit))  # type: ignore[arg-type]
    assert all(candidate.complete for candidate in result.candidates) or result.stopped


@pytest.mark.parametrize("pages", [3, 6])
@pytest.mark.parametrize("name", STRATEGIES)
def test_a_pool_that_is_too_small(model, name: str, pages: int) -> None:
    """The prompt has 2 pages and a token on the third."""
    decoder = TreeDecoder(model, byte_tokenizer(), kv_bytes=pages * PAGE_BYTES, sampling=SAMPLING)
    result = searched(decoder, name, 33)
    if pages == 3:
        assert result.stopped


def test_a_line_that_is_cut_off_by_itself_is_told(decoder: TreeDecoder) -> None:
    """`multi_round` takes a prompt that does not fit for the end of the rounds."""
    result = searched(decoder, "multi_round", 500)
    assert "but the model allows 512" in result.stopped
    assert all(candidate.complete for candidate in result.candidates)


@pytest.mark.parametrize("where", ["extend", "prompt", "logprobs_of"])
def test_what_does_not_fit_ends_a_strategy_of_ones_own(decoder: TreeDecoder, where: str) -> None:
    async def own(run: SearchRun) -> SearchResult:
        branches: list[Branch] = run.fork(run.root, 2)
        await run.step(branches)
        if where == "extend":
            await run.extend(branches[0], "x" * POSITIONS)
        elif where == "prompt":
            await run.prompt("x" * (POSITIONS + 1))
        else:
            await run.logprobs_of(branches[0], "x" * POSITIONS)
        raise AssertionError("it does not fit")

    made = unregistered(own)

    async def search() -> SearchResult:
        root = await decoder.root(prompt(20))
        result = await made(root)
        root.release()
        return result

    result = decoder.run(search())
    assert f"the model{' allows' if where == 'prompt' else chr(39) + 's'} {POSITIONS}" in result.stopped
    assert [len(candidate.tokens) for candidate in result.candidates] == [6, 6]


@pytest.mark.parametrize("length", [20, 511])
def test_a_template_that_gives_nothing_ends_the_search(decoder: TreeDecoder, length: int) -> None:
    """Behind a prompt of 511 tokens the answers are too short to hold any text."""

    @unregistered
    async def bare(run: SearchRun, *, n: int = 2) -> SearchResult:
        branches = run.fork(run.root, n)
        await run.step(branches)
        await run.ask("")
        return await run.result()

    async def search() -> SearchResult:
        root = await decoder.root(prompt(length))
        try:
            return await bare(root)
        finally:
            root.release()

    result = decoder.run(search())
    assert result.stopped == "a prompt of the search's own is empty"
    assert [bool(candidate.tokens) for candidate in result.candidates] == [True, True]
    assert decoder.stats().branches == 0
