"""Failures in the middle of a search: pages that run out, a failing model, closed loops, interrupts."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import torch
from small_decoders import PAGE_BYTES, PROMPT, kv_state, small_decoder
from transformers import PreTrainedModel
from tts_decode import Branch, OutOfPagesError, SamplingParams, TreeDecoder, gather
from tts_decode.model.packed_model import PackedModel
from tts_decode.rewards import mean_logprob
from tts_decode.search import STRATEGIES, SearchResult, beam_search

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def decoder(model: PreTrainedModel) -> TreeDecoder:
    return small_decoder(model)


def test_requests_of_a_loop_that_was_closed_are_given_up(decoder: TreeDecoder) -> None:
    kept: list[asyncio.Future[Any]] = []

    async def leave_waiting() -> Branch:
        root = await decoder.root(PROMPT)
        branch = root.fork()[0]
        kept.append(asyncio.ensure_future(branch.extend([5] * 40)))
        kept.append(asyncio.ensure_future(decoder.root([7] * 40)))
        await asyncio.sleep(0)
        return branch

    async def go_on(branch: Branch) -> None:
        await branch.parent.step(max_step_tokens=2)  # type: ignore[union-attr]
        assert branch.tokens == PROMPT
        await branch.step(max_step_tokens=2)

    loop = asyncio.new_event_loop()
    branch = loop.run_until_complete(leave_waiting())
    loop.close()
    decoder.run(go_on(branch))
    assert decoder.stats().branches == 2


def test_an_interrupt_in_the_model_gives_all_back(
    decoder: TreeDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = decoder.runtime.engine.forward

    def interrupted(*args: Any, **options: Any) -> Any:
        if decoder.stats().steps == 7:
            raise KeyboardInterrupt
        return forward(*args, **options)

    async def search() -> None:
        root = await decoder.root(PROMPT, SamplingParams(max_tokens=50, max_step_tokens=5))
        try:
            await beam_search(root, n=4, beam_width=2, scorer=mean_logprob())
        finally:
            root.release()

    with monkeypatch.context() as patch:
        patch.setattr(decoder.runtime.engine, "forward", interrupted)
        with pytest.raises(KeyboardInterrupt):
            decoder.run(search())
    assert kv_state(decoder) == (0, 0, 0, 0)
    decoder.run(search())
    assert kv_state(decoder) == (0, 0, 0, 0)


def test_out_of_pages_fails_one_and_frees_the_others(model: PreTrainedModel) -> None:
    """Eight branches want more than the pool holds: those that fail say why, and nothing is corrupted."""
    decoder = small_decoder(model, pages=12)

    async def search() -> None:
        root = await decoder.root(PROMPT, SamplingParams(temperature=0, max_step_tokens=60))
        children = root.fork(8)

        async def step_or_release(child: Branch) -> str:
            try:
                return (await child.step()).reason
            except OutOfPagesError as error:
                child.release()
                return str(error)

        reasons = await gather(step_or_release(child) for child in children)
        errors = [reason for reason in reasons if reason != "max_step_tokens"]
        assert 0 < len(errors) < 8
        advice = f"(kv_bytes = {12 * PAGE_BYTES}): raise kv_bytes or set kv_offload, lower n"
        assert all(advice in text for text in errors)
        done = [child for child, reason in zip(children, reasons, strict=True) if reason == "max_step_tokens"]
        assert len({tuple(child.tokens) for child in done}) == 1  # greedy, so all the same
        for branch in (root, *done):
            branch.release()
        assert kv_state(decoder) == (0, 0, 0, 0)
        fresh = await decoder.root(PROMPT, SamplingParams(temperature=0, max_step_tokens=60))
        await fresh.step()
        assert fresh.tokens == done[0].tokens

    decoder.run(search())


@pytest.mark.parametrize(
    "name", ["best_of_n", "self_consistency", "beam_search", "lm_beam_search", "rebase", "ets", "swift"]
)
def test_searches_that_run_out_of_pages_end_with_what_they_have(model: PreTrainedModel, name: str) -> None:
    decoder = small_decoder(model, pages=9)
    options = {"scorer": mean_logprob()} if STRATEGIES[name].needs_scorer else {}

    async def search() -> SearchResult:
        root = await decoder.root(PROMPT, SamplingParams(max_tokens=60, max_step_tokens=20))
        try:
            return await STRATEGIES[name](root, n=8, **options)
        finally:
            root.release()

    async def problems() -> list[SearchResult]:
        return await gather(search() for _ in range(3))

    for result in decoder.run(problems()):
        assert result.stopped is not None
        assert "more KV pages" in result.stopped
        assert result.best in result.candidates
        assert any(candidate.tokens for candidate in result.candidates)
    assert kv_state(decoder) == (0, 0, 0, 0)


def test_a_failed_step_can_be_taken_again(model: PreTrainedModel) -> None:
    decoder = small_decoder(model, pages=5)

    async def search() -> None:
        root = await decoder.root(PROMPT, SamplingParams(temperature=0, max_step_tokens=50))
        other = await decoder.root([1] * 30)
        with pytest.raises(OutOfPagesError, match="needs 1 more KV pages"):
            await root.step()
        length = root.length
        other.release()
        await root.step(max_step_tokens=60 + len(PROMPT) - length - 20)
        assert root.length == 80

    decoder.run(search())


@pytest.mark.parametrize("pack_weights", [True, False])
def test_a_failing_forward_changes_nothing(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch, pack_weights: bool
) -> None:
    """In the second layer, or after all of them where one call computes them."""
    decoder = small_decoder(model, pages=64, pack_weights=pack_weights)

    async def search() -> None:
        root = await decoder.root(PROMPT, SamplingParams(temperature=0, max_step_tokens=4))
        children = root.fork(3)
        await gather(child.step() for child in children)
        before = kv_state(decoder)
        tokens = [list(child.tokens) for child in children]
        attend = decoder.runtime.pool.attend

        def broken(layer: int, *arguments: Any, **options: Any) -> tuple[torch.Tensor, ...]:
            if layer == 1:
                raise MemoryError("no memory left")
            return attend(layer, *arguments, **options)

        forward = PackedModel.forward

        def broken_end(*arguments: Any) -> None:
            forward(*arguments)
            raise MemoryError("no memory left")

        with monkeypatch.context() as patch:
            patch.setattr(decoder.runtime.pool, "attend", broken)
            patch.setattr(PackedModel, "forward", broken_end)
            with pytest.raises(MemoryError, match="no memory left"):
                await gather(child.step() for child in children)
            with pytest.raises(MemoryError):
                await children[0].extend([1, 2, 3])
            with pytest.raises(MemoryError):
                await decoder.root([9, 9, 9])
        assert kv_state(decoder) == before
        assert [child.tokens for child in children] == tokens
        await gather(child.step() for child in children)
        assert len({tuple(child.tokens) for child in children}) == 1

    decoder.run(search())


def test_nan_logits_are_reported(decoder: TreeDecoder) -> None:
    async def search() -> None:
        weight = decoder.model.lm_head.weight
        kept = weight[3].clone()
        with torch.no_grad():
            weight[3] = torch.nan
        try:
            root = await decoder.root(PROMPT)
            with pytest.raises(ValueError, match="logits hold NaN or inf"):
                await root.step()
            assert root.length == len(PROMPT)
        finally:
            with torch.no_grad():
                weight[3] = kept
        await root.recompute()
        await root.step(max_step_tokens=2)

    decoder.run(search())
