"""Forks, cuts, forced text, snapshots, steps and failures in any order, under penalties and a constraint."""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule
from sampling_reference import reference_probs
from tiny_models import EOS, byte_tokenizer, tiny_model
from tts_decode import (
    BranchState,
    Budget,
    ConstraintError,
    KVOffload,
    Regex,
    SamplingParams,
    TreeBranch,
    TreeDecoder,
    gather,
)
from tts_decode.core.params import uniforms

pytest.importorskip("llguidance")
from tts_decode.core.constraints.matcher import MatcherState  # needs llguidance

PROMPT = list(b"abc;a;cc;;ab")
MODEL = tiny_model()
PAGE_BYTES = TreeDecoder(MODEL, byte_tokenizer()).stats().page_bytes
# Of each text that can be matched by going on: the bytes that may follow, and whether it may end.
LETTERS, DIGITS = set(b"abcd"), set(b"012")


def allowed_after(text: bytes) -> set[int]:
    """After a text of `([a-d]{2}[0-2];)*`."""
    following = [LETTERS | {EOS}, LETTERS, DIGITS, set(b";")][len(text) % 4]
    assert re.fullmatch(rb"([a-d]{2}[0-2];)*([a-d]{0,2}|[a-d]{2}[0-2])", text)
    return following


SAMPLING = SamplingParams(
    seed=7,
    frequency_penalty=0.8,
    presence_penalty=-0.5,
    repetition_penalty=1.2,
    logit_bias={EOS: -2.0, 97: 1.0},
    max_step_tokens=3,
    constraint=Regex("([a-d]{2}[0-2];)*"),
)


@dataclass
class Modelled:
    """A branch, and what it has to hold."""

    branch: TreeBranch
    tokens: list[int]

    @property
    def generated(self) -> list[int]:
        return self.tokens[len(PROMPT) :]

    @property
    def allowed(self) -> set[int]:
        if EOS in self.generated:
            return set()
        return allowed_after(bytes(self.generated))


class Branches(RuleBasedStateMachine):
    branches: Bundle[Modelled] = Bundle("branches")
    memory: ClassVar[dict[str, Any]] = {"kv_bytes": 1 << 22}

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.budget, self.sampled = Budget(max_tokens=10_000), 0
        torch.set_num_threads(1)

    def teardown(self) -> None:
        self.loop.close()

    def run(self, call: Any) -> Any:
        return self.loop.run_until_complete(call)

    @initialize(target=branches)
    def begin(self) -> Modelled:
        self.decoder = TreeDecoder(MODEL, byte_tokenizer(), **self.memory)
        return Modelled(self.run(self.decoder.root(PROMPT, SAMPLING, self.budget)), list(PROMPT))

    @rule(some=st.lists(branches, min_size=1, max_size=4), streamed=st.booleans())
    def step(self, some: list[Modelled], streamed: bool) -> None:
        some = list({id(one): one for one in some}.values())

        async def go(one: Modelled) -> None:
            if streamed:
                async for _ in one.branch.stream():
                    pass
            else:
                await one.branch.step()

        async def together() -> None:
            await gather(go(one) for one in some)

        ended = [not one.allowed for one in some]  # of an extension that ends its text nothing is drawn
        self.run(together())
        for one, had_ended in zip(some, ended, strict=True):
            assert bool(self.take_in(one)) != had_ended

    @rule(
        one=branches,
        others=st.lists(branches, max_size=2),
        call=st.sampled_from(["advance", "mask"]),
        after=st.integers(0, 4),
    )
    def fail(self, one: Modelled, others: list[Modelled], call: str, after: int) -> None:
        """The constraint gives up in the middle of steps: one of them fails, the others end as ever."""
        some = list({id(each): each for each in [one, *others]}.values())
        whole, calls = getattr(MatcherState, call), 0

        def unreliable(state: MatcherState, *args: int) -> Any:
            nonlocal calls
            calls += 1
            result = whole(state, *args)
            if calls == after + 1:
                raise ConstraintError("it gave up")
            return result

        async def together() -> list[Any]:
            return await asyncio.gather(*(each.branch.step() for each in some), return_exceptions=True)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(MatcherState, call, unreliable)
            results = self.run(together())
        failed = [result for result in results if isinstance(result, BaseException)]
        assert [str(error) for error in failed] == ["it gave up"] * (calls > after)
        for each, result in zip(some, results, strict=True):
            new = self.take_in(each)
            assert not each.branch.busy
            assert isinstance(result, BaseException) or new == list(result.tokens)

    def take_in(self, one: Modelled) -> list[int]:
        """Checks what was drawn since; returns it."""
        branch, begin = one.branch, len(one.tokens)
        new = branch.tokens[begin:]
        assert branch.tokens[:begin] == one.tokens
        with torch.no_grad():
            logits = MODEL(torch.tensor([branch.tokens])).logits[0].double()
        for token in new:
            self.check_drawn(one, logits[len(one.tokens) - 1], token)
            one.tokens.append(token)
        assert branch.finished == (EOS in one.generated)
        assert len(branch.logprobs) == len(branch.entropies) == len(one.generated)
        if branch.budget is not None:
            self.sampled += len(new)
        return new

    @invariant()
    def the_budget_counts_what_was_drawn(self) -> None:
        assert self.budget.tokens_used == self.sampled

    def check_drawn(self, one: Modelled, logits: torch.Tensor, token: int) -> None:
        """It is the one at whose place in the CDF the branch's random number lies."""
        assert token in one.allowed
        probs = reference_probs(logits, SAMPLING, one.tokens, len(PROMPT), one.allowed)
        u, high = uniforms([one.branch.seed], [len(one.tokens)])[0], float(probs[: token + 1].sum())
        assert high - float(probs[token]) - 1e-3 <= u <= high + 1e-3

    @rule(target=branches, one=branches, at=st.integers(0, 40), n=st.integers(1, 2))
    def fork(self, one: Modelled, at: int, n: int) -> Any:
        at = max(len(PROMPT), len(one.tokens) - at)
        return multiple(*(Modelled(child, one.tokens[:at]) for child in one.branch.fork(n, at=at)))

    @rule(one=branches, count=st.integers(0, 12))
    def truncate(self, one: Modelled, count: int) -> None:
        length = max(len(PROMPT), len(one.tokens) - count)
        one.branch.truncate(length)
        del one.tokens[length:]

    @rule(one=branches, tokens=st.lists(st.sampled_from([*b"abcd012;x", EOS]), max_size=5))
    def extend(self, one: Modelled, tokens: list[int]) -> None:
        """Any tokens: those that fit are kept, others are refused and change nothing."""
        after = Modelled(one.branch, list(one.tokens))
        fits = True
        for token in tokens:
            fits = fits and token in after.allowed
            if not fits:
                break
            after.tokens.append(token)
        if fits:
            self.run(one.branch.extend(tokens))
            one.tokens = after.tokens
        else:
            before = one.branch.snapshot()
            with pytest.raises(ConstraintError):
                self.run(one.branch.extend(tokens))
            assert one.branch.snapshot() == before

    @rule(target=branches, one=branches)
    def restore(self, one: Modelled) -> Modelled:
        state = BranchState.from_dict(json.loads(json.dumps(one.branch.snapshot().to_dict())))
        return Modelled(self.run(self.decoder.restore(state)), list(one.tokens))

    @rule(one=branches)
    def replay(self, one: Modelled) -> None:
        """The last step, cut off and taken in again."""
        branch = one.branch
        if branch.steps and branch.step_ends[-1] == branch.length:
            step, seed = branch.steps[-1], branch.snapshot()
            branch.truncate(branch.length - len(step.tokens))
            self.run(branch.replay(step))
            self.sampled += len(step.tokens) * (branch.budget is not None)
            assert branch.snapshot().tokens == seed.tokens
            assert branch.finish_reason == ("eos" if EOS in one.generated else None)

    @rule(one=consumes(branches))
    def release(self, one: Modelled) -> None:
        one.branch.release()


TestBranches = Branches.TestCase
TestBranches.settings = settings(max_examples=25, stateful_step_count=20)


class OffloadedBranches(Branches):
    """The same where the pool holds a few branches at a time."""

    memory: ClassVar[dict[str, Any]] = {"kv_bytes": 6 * PAGE_BYTES, "kv_offload": KVOffload(1 << 22)}


TestOffloadedBranches = OffloadedBranches.TestCase
TestOffloadedBranches.settings = settings(max_examples=25, stateful_step_count=20)
