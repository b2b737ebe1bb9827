"""Constraints: what a branch may draw, with grammars and with a constraint in Python."""

from __future__ import annotations

import asyncio
import json
import re
import sys

import pytest
import torch
from constrained import SCHEMA, Pairs, params
from primitives import PROMPT
from tiny_models import EOS, byte_tokenizer
from tts_decode import (
    Choice,
    Constraint,
    ConstraintError,
    Grammar,
    JSONSchema,
    Regex,
    Step,
    TreeDecoder,
    gather,
)

pytest.importorskip("llguidance")
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("constraint", "pattern"),
    [
        (Regex("[a-z]{2,5}(-[0-9]+)?"), r"[a-z]{2,5}(-[0-9]+)?"),
        (Regex("é{1,3}|日本"), "é{1,3}|日本"),
        (Grammar('root ::= "<" inner ">"\ninner ::= [a-c] | "<" inner ">"'), r"(<)+[a-c](>)+"),
        (Grammar('start: "x" /[0-9]{2}/ "y"?'), r"x[0-9]{2}y?"),
        (Choice(["yes", "no", 'a "b" \\ (c)|*\n', "日 é"]), None),
        (Pairs(), r"([abc];)*"),
    ],
)
def test_a_whole_text_matches(
    ending_decoder: TreeDecoder, constraint: Constraint, pattern: str | None, seed: int
) -> None:
    if pattern is None:
        assert isinstance(constraint, Choice)
        pattern = "|".join(map(re.escape, constraint.options))

    async def search() -> None:
        with_eos = params(constraint, seed=seed, logit_bias={EOS: 3.0})
        branch = await ending_decoder.root(PROMPT, with_eos)
        await branch.step()
        assert branch.finish_reason in ("eos", "max_tokens") or branch.length == len(PROMPT) + 100
        if branch.finish_reason == "eos":
            assert re.fullmatch(pattern, branch.text), branch.text
            assert branch.tokens[-1] == EOS

    asyncio.run(search())


@pytest.mark.parametrize("whitespace", [True, False])
def test_json_is_valid(ending_decoder: TreeDecoder, whitespace: bool) -> None:
    async def search() -> None:
        constraint = JSONSchema(SCHEMA, whitespace=whitespace)
        blanks = dict.fromkeys(b" \t\n\r", -100.0)
        for seed in range(4):
            sampling = params(constraint, seed=seed, logit_bias=blanks | {EOS: 50.0, 34: 5.0})
            branch = await ending_decoder.root(PROMPT, sampling)
            await branch.step()
            assert branch.finish_reason == "eos"
            value = json.loads(branch.text)
            assert list(value) == ["name", "n"]
            assert isinstance(value["n"], int)
            assert len(value["name"]) <= 4

    asyncio.run(search())


def test_the_log_probabilities_stay_the_models(ending_decoder: TreeDecoder) -> None:
    async def search() -> None:
        branch = await ending_decoder.root(PROMPT, params(Regex("[a-z]{8}")))
        step = await branch.step()
        forced = await (await ending_decoder.root(PROMPT)).extend(step.tokens)
        torch.testing.assert_close(torch.tensor(step.logprobs), forced, atol=1e-5, rtol=0)

    asyncio.run(search())


def test_steps_go_on_where_the_last_one_ended(ending_decoder: TreeDecoder) -> None:
    """Cut by max_step_tokens and by a stop string, the text equals the text of one step."""

    async def search() -> None:
        whole = await ending_decoder.root(PROMPT, params(Regex("([a-f]{3},){4}")))
        await whole.step()
        for options in ({"max_step_tokens": 2}, {"stop": (",",)}):
            cut = await ending_decoder.root(PROMPT, params(Regex("([a-f]{3},){4}"), **options))
            while not cut.finished:
                await cut.step()
            assert (cut.text, cut.finish_reason) == (whole.text, "eos")

    asyncio.run(search())


def test_a_constraint_may_hold_for_one_step(ending_decoder: TreeDecoder) -> None:
    async def search() -> None:
        branch = await ending_decoder.root(PROMPT, params(None, suppress_token_ids=(EOS,)))
        await branch.step(max_step_tokens=5)
        step = await branch.step(constraint=Regex("[0-9]{3}"), suppress_token_ids=())
        assert re.fullmatch("[0-9]{3}", step.text)
        assert step.reason == "eos"
        branch.truncate(branch.length - 1)
        step = await branch.step(constraint=Regex("[x-z]{3}"))  # it begins with the step
        assert re.fullmatch("[x-z]{3}", step.text)
        assert step.reason == "complete"  # its end of sequence is suppressed

    asyncio.run(search())


def test_where_nothing_may_follow_the_branch_ends(ending_decoder: TreeDecoder) -> None:
    async def search() -> None:
        stuck = await ending_decoder.root(PROMPT, params(Regex("ab+c"), suppress_token_ids=(98,)))
        step = await stuck.step()
        assert (step.text, step.reason, stuck.finish_reason) == ("a", "dead_end", "dead_end")
        assert await stuck.step() == Step("", (), (), (), "dead_end")
        done = await ending_decoder.root(PROMPT, params(Regex("abc"), suppress_token_ids=(EOS,)))
        step = await done.step()
        assert (step.text, step.reason) == ("abc", "complete")
        done.truncate(done.length - 1)
        assert (await done.step(suppress_token_ids=())).reason == "eos"

    asyncio.run(search())


def test_a_dead_end_of_a_grammar_can_be_cut_off(ending_decoder: TreeDecoder) -> None:
    """After "bx" no text matches, which shows only there."""
    grammar = Grammar('start: "ok" | "bx" NONE\nNONE: /[a-z]/ & /[0-9]/')

    async def search() -> None:
        branch = await ending_decoder.root(PROMPT, params(grammar, logit_bias={98: 100.0}))
        step = await branch.step()
        assert (step.text, step.reason) == ("bx", "dead_end")
        (child,) = branch.fork()
        assert (await child.step()).reason == "dead_end"
        with pytest.raises(ConstraintError):
            await branch.extend("a")
        branch.truncate(len(PROMPT) + 1)
        assert (await branch.step()).text == "x"
        (other,) = branch.fork(at=len(PROMPT))
        step = await other.step(logit_bias={111: 100.0})
        assert (step.text, step.reason) == ("ok", "eos")

    asyncio.run(search())


def test_where_the_package_is_missing_its_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(ImportError, match=r"tts-kernels\[grammar\]"):
        Regex("a").start(byte_tokenizer())


def test_penalties_cannot_force_what_is_forbidden(ending_decoder: TreeDecoder) -> None:
    async def search() -> None:
        sampling = params(Regex("[ab]{6}"), logit_bias={120: 100.0, 97: -100.0}, presence_penalty=2.0)
        branch = await ending_decoder.root(PROMPT, sampling)
        assert (await branch.step()).text == "bbbbbb"

    asyncio.run(search())


def test_the_models_impossible_tokens_are_drawn_where_only_they_are_allowed(
    ending_decoder: TreeDecoder,
) -> None:
    head = ending_decoder.model.lm_head.weight
    before = head.detach().clone()

    async def search() -> None:
        with torch.no_grad():
            head[:] = 0.0
        branch = await ending_decoder.root(PROMPT, params(Regex("xyz"), logit_bias={120: -100, 121: -100}))
        assert (await branch.step()).text == "xyz"

    try:
        asyncio.run(search())
    finally:
        with torch.no_grad():
            head[:] = before
        ending_decoder.weights_changed()


def test_a_branch_does_not_depend_on_company(ending_decoder: TreeDecoder) -> None:
    async def drawn(count: int) -> list[Step]:
        constraints = [Regex("[a-z]{20}"), None, JSONSchema(SCHEMA), Choice(["left", "right"])]
        roots = [
            await ending_decoder.root(PROMPT, params(c, max_step_tokens=10)) for c in constraints[:count]
        ]
        return await gather(root.step() for root in roots)

    assert asyncio.run(drawn(2)) == asyncio.run(drawn(4))[:2]
    assert asyncio.run(drawn(1)) == asyncio.run(drawn(4))[:1]
