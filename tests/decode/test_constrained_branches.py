"""Branches under a constraint: forced tokens, copies, cancelled steps, saved branches."""

from __future__ import annotations

import asyncio
import json
import re

import pytest
import torch
from constrained import Pairs, params
from primitives import PROMPT
from tiny_models import EOS
from tts_decode import BranchState, Constraint, ConstraintError, Regex, Step, TreeDecoder
from tts_decode.rewards import self_evaluation

pytest.importorskip("llguidance")
pytestmark = pytest.mark.usefixtures("one_thread")


def test_forced_tokens_that_break_it_are_refused_and_change_nothing(ending_decoder: TreeDecoder) -> None:
    async def search() -> None:
        branch = await ending_decoder.root(PROMPT, params(Regex("ab+c?")))
        await branch.extend("ab")
        before, pages = branch.snapshot(), ending_decoder.stats()
        for tokens in ("bx", "cc", [EOS, 98], [257]):
            with pytest.raises(ConstraintError, match=r"number . after the prompt"):
                await branch.extend(tokens)
            ids = tuple(ending_decoder.runtime.reader.ids(tokens))
            numbers = (0.0,) * len(ids)
            with pytest.raises(ConstraintError):
                await branch.replay(Step("", ids, numbers, numbers, "stop_token"))
        with pytest.raises(ConstraintError):
            await branch.read("x", [0])
        with pytest.raises(ConstraintError):
            await branch.extend_embeds(torch.zeros(1, ending_decoder.hidden_size))
        assert branch.snapshot() == before
        assert ending_decoder.stats().forward_tokens == pages.forward_tokens
        await branch.extend("bc")
        assert (await branch.step()).tokens == (EOS,)
        with pytest.raises(ConstraintError):  # behind the end of the sequence
            await branch.extend("b")
        branch.truncate(branch.length - 2)
        await branch.extend("b")
        assert branch.text == "abbb"

    asyncio.run(search())


def test_other_text_is_scored_on_copies(ending_decoder: TreeDecoder) -> None:
    async def search() -> None:
        branch = await ending_decoder.root(PROMPT, params(Regex("[0-9]+")))
        await branch.step(max_step_tokens=3)
        assert len(await branch.logprobs_of(" no number")) == 10
        copy = branch.copy()
        await copy.extend(" Is it right?")
        copy.release()
        assert branch.sampling.constraint == Regex("[0-9]+")
        (score,) = await self_evaluation(yes="y", no="n")([branch])  # it asks a question of a copy
        assert 0 <= score <= 1

    asyncio.run(search())


def test_a_branch_takes_no_other_constraint_for_a_step(ending_decoder: TreeDecoder) -> None:
    async def search() -> None:
        branch = await ending_decoder.root(PROMPT, params(Regex("[0-9]+")))
        for other in (None, Regex("[a-z]+")):
            with pytest.raises(ValueError, match=r"constraint: got .*, expected the branch's own"):
                await branch.step(constraint=other)
        assert (await branch.step(constraint=Regex("[0-9]+"), max_step_tokens=2)).text.isdigit()

    asyncio.run(search())


def test_a_cancelled_step_goes_on(ending_decoder: TreeDecoder) -> None:
    async def search() -> None:
        branch, whole = [await ending_decoder.root(PROMPT, params(Regex("[a-z]{30}"))) for _ in range(2)]
        task = asyncio.ensure_future(branch.step())
        while branch.length < len(PROMPT) + 5:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert branch.length < len(PROMPT) + 30
        await branch.step()
        await whole.step()
        assert branch.tokens == whole.tokens

    asyncio.run(search())


@pytest.mark.parametrize("constraint", [Regex("([a-c];)*"), Pairs()])
def test_a_saved_branch_goes_on(ending_decoder: TreeDecoder, constraint: Constraint) -> None:
    async def search() -> None:
        branch = await ending_decoder.root(PROMPT, params(constraint, max_step_tokens=5))
        await branch.step()
        state = branch.snapshot()
        if isinstance(constraint, Pairs):
            with pytest.raises(ValueError, match="constraint: got a Pairs, expected one of JSONSchema"):
                state.to_dict()
        else:
            state = BranchState.from_dict(json.loads(json.dumps(state.to_dict())))
            assert state == branch.snapshot()
        again = await ending_decoder.restore(state)
        assert await again.step() == await branch.step()
        assert re.fullmatch("([a-c];)*[a-c]?", again.text)

    asyncio.run(search())


def test_a_saved_branch_whose_tokens_break_it_is_refused(ending_decoder: TreeDecoder) -> None:
    async def search() -> None:
        branch = await ending_decoder.root(PROMPT, params(Regex("[a-c]{5}"), max_step_tokens=5))
        await branch.step()
        data = branch.snapshot().to_dict()
        data["tokens"][-2] = 65
        with pytest.raises(ConstraintError, match="got 65 as number 4 after the prompt"):
            await ending_decoder.restore(BranchState.from_dict(data))

    asyncio.run(search())
