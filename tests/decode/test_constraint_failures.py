"""If a constraint gives up, the branch keeps its text, the budget counts it, and both continue."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from constrained import Pairs, PairsState, params
from primitives import PROMPT
from tts_decode import Budget, ConstraintError, Grammar, StepPiece, TreeBranch, TreeDecoder

pytestmark = pytest.mark.usefixtures("one_thread")

# A few "a" have more readings than llguidance follows.
AMBIGUOUS = "start: " + " | ".join(f"r{i}" for i in range(150))
AMBIGUOUS += "".join(f'\nr{i}: "a" | r{i} r{i}' for i in range(150))


class Unreliable(Pairs):
    """Gives up once, when `fails` says so of the name of a call and the text; what it did stays done."""

    fails: Callable[[str, str], bool] = staticmethod(lambda call, text: False)

    def start(self, tokenizer: Any) -> UnreliableState:
        return UnreliableState(self.letters, "")


class UnreliableState(PairsState):
    def _check(self, call: str) -> None:
        if Unreliable.fails(call, self._text):
            Unreliable.fails = staticmethod(lambda call, text: False)
            raise ConstraintError("it gave up")

    def advance(self, token: int) -> bool:
        fits = super().advance(token)
        self._check("advance")
        return fits

    def mask(self) -> Any:
        self._check("mask")
        return super().mask()

    def fork(self) -> UnreliableState:
        return UnreliableState(self._letters, self._text)


async def read_into(pieces: list[StepPiece], branch: TreeBranch) -> None:
    async for piece in branch.stream():
        pieces.append(piece)


@pytest.mark.parametrize("call", ["advance", "mask"])
@pytest.mark.parametrize("streamed", [False, True])
def test_a_step_that_fails_leaves_the_tokens_before(
    ending_decoder: TreeDecoder, monkeypatch: pytest.MonkeyPatch, call: str, streamed: bool
) -> None:
    """And continues to the same text as one that never failed."""

    async def search() -> None:
        sampling = params(Unreliable(), suppress_token_ids=(256,), max_step_tokens=12)
        budget = Budget(max_tokens=100)
        whole, branch = [await ending_decoder.root(PROMPT, sampling, budget) for _ in range(2)]
        await whole.step()
        assert budget.tokens_used == 12
        monkeypatch.setattr(
            Unreliable, "fails", staticmethod(lambda name, text: (name, len(text)) == (call, 5))
        )
        pieces: list[StepPiece] = []
        with pytest.raises(ConstraintError, match="it gave up"):
            await (read_into(pieces, branch) if streamed else branch.step())
        shown = [token for piece in pieces for token in piece.tokens]
        assert shown == whole.tokens[len(PROMPT) : len(PROMPT) + len(shown)]
        assert branch.tokens == whole.tokens[: len(PROMPT) + 4]
        assert branch.logprobs == whole.logprobs[:4]
        assert len(branch.entropies) == 4
        assert budget.tokens_used == 16
        assert not branch.busy
        (child,) = branch.fork(seeds=[branch.seed])
        cut = branch.copy()
        cut.truncate(len(PROMPT) + 2)
        for other in (branch, child):
            await other.step(max_step_tokens=8)
            assert (other.tokens, other.logprobs) == (whole.tokens, whole.logprobs)
        assert budget.tokens_used == 32

    asyncio.run(search())


def test_where_llguidance_gives_up_the_branch_can_be_cut(ending_decoder: TreeDecoder) -> None:
    pytest.importorskip("llguidance")

    async def search() -> None:
        budget = Budget(max_tokens=100)
        sampling = params(Grammar(AMBIGUOUS), suppress_token_ids=(256,))
        branch = await ending_decoder.root(PROMPT, sampling, budget)
        with pytest.raises(ConstraintError, match="llguidance gave up after"):
            await branch.step()
        text = branch.text
        assert len(text) >= 3
        assert text == "a" * len(text)
        with pytest.raises(ConstraintError, match="llguidance gave up after"):
            await branch.step()  # it would draw the same token
        with pytest.raises(ConstraintError, match="expected one that the branch's constraint allows"):
            await branch.extend("b")
        assert (branch.text, budget.tokens_used) == (text, len(text))
        (child,) = branch.fork(at=branch.length - 2)
        branch.truncate(branch.length - 1)
        for other in (branch, child):
            assert (await other.step(max_step_tokens=1)).text == "a"
        assert (branch.text, child.text) == (text, text[1:])

    asyncio.run(search())
