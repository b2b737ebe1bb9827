"""Constraints: what a branch may draw and be given, with grammars and with a constraint in Python."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from primitives import PROMPT
from tiny_models import EOS, byte_tokenizer
from tiny_tokenizers import VOCABULARIES
from transformers import PreTrainedModel
from tts_decode import (
    BranchState,
    Choice,
    Constraint,
    ConstraintError,
    Grammar,
    JSONSchema,
    Regex,
    SamplingParams,
    Step,
    TreeDecoder,
    gather,
)
from tts_decode.rewards import self_evaluation

pytest.importorskip("llguidance")
pytestmark = pytest.mark.usefixtures("one_thread")

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 4}, "n": {"type": "integer"}},
    "required": ["name", "n"],
    "additionalProperties": False,
}


@pytest.fixture
def decoder(model: PreTrainedModel) -> Iterator[TreeDecoder]:
    """With its end of sequence, which the constraints are about."""
    decoder = TreeDecoder(model, byte_tokenizer(), kv_bytes=1 << 22)
    yield decoder
    assert (decoder.stats().branches, decoder.stats().resident_bytes) == (0, 0)


def params(constraint: Constraint | None, **options: Any) -> SamplingParams:
    return SamplingParams(**({"seed": 3, "max_step_tokens": 100} | options), constraint=constraint)


@dataclass(frozen=True)
class Pairs:
    """Written in Python: pairs of a letter of `letters` and ";". For byte tokens."""

    letters: str = "abc"

    def start(self, tokenizer: Any) -> PairsState:
        return PairsState(self.letters, "")


class PairsState:
    def __init__(self, letters: str, text: str) -> None:
        self._letters, self._text = letters, text

    @property
    def accepts(self) -> bool:
        return len(self._text) % 2 == 0

    def mask(self) -> npt.NDArray[np.bool_]:
        allowed = np.zeros(128, np.bool_)  # shorter than the vocabulary
        allowed[list((self._letters if self.accepts else ";").encode())] = True
        return allowed

    def advance(self, token: int) -> bool:
        if token >= 128 or not self.mask()[token]:
            return False
        self._text += chr(token)
        return True

    def fork(self) -> PairsState:
        return PairsState(self._letters, self._text)

    def rollback(self, count: int) -> None:
        self._text = self._text[: len(self._text) - count]


# -- what is drawn


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
    decoder: TreeDecoder, constraint: Constraint, pattern: str | None, seed: int
) -> None:
    if pattern is None:
        assert isinstance(constraint, Choice)
        pattern = "|".join(map(re.escape, constraint.options))

    async def search() -> None:
        with_eos = params(constraint, seed=seed, logit_bias={EOS: 3.0})
        branch = await decoder.root(PROMPT, with_eos)
        await branch.step()
        assert branch.finish_reason in ("eos", "max_tokens") or branch.length == len(PROMPT) + 100
        if branch.finish_reason == "eos":
            assert re.fullmatch(pattern, branch.text), branch.text
            assert branch.tokens[-1] == EOS

    asyncio.run(search())


@pytest.mark.parametrize("whitespace", [True, False])
def test_json_is_valid(decoder: TreeDecoder, whitespace: bool) -> None:
    async def search() -> None:
        constraint = JSONSchema(SCHEMA, whitespace=whitespace)
        blanks = dict.fromkeys(b" \t\n\r", -100.0)
        for seed in range(4):
            sampling = params(constraint, seed=seed, logit_bias=blanks | {EOS: 50.0, 34: 5.0})
            branch = await decoder.root(PROMPT, sampling)
            await branch.step()
            assert branch.finish_reason == "eos"
            value = json.loads(branch.text)
            assert list(value) == ["name", "n"]
            assert isinstance(value["n"], int)
            assert len(value["name"]) <= 4

    asyncio.run(search())


def test_the_log_probabilities_stay_the_models(decoder: TreeDecoder) -> None:
    async def search() -> None:
        branch = await decoder.root(PROMPT, params(Regex("[a-z]{8}")))
        step = await branch.step()
        forced = await (await decoder.root(PROMPT)).extend(step.tokens)
        torch.testing.assert_close(torch.tensor(step.logprobs), forced, atol=1e-5, rtol=0)

    asyncio.run(search())


def test_steps_go_on_where_the_last_one_ended(decoder: TreeDecoder) -> None:
    """Cut by max_step_tokens and by a stop string, the text is that of one step."""

    async def search() -> None:
        whole = await decoder.root(PROMPT, params(Regex("([a-f]{3},){4}")))
        await whole.step()
        for options in ({"max_step_tokens": 2}, {"stop": (",",)}):
            cut = await decoder.root(PROMPT, params(Regex("([a-f]{3},){4}"), **options))
            while not cut.finished:
                await cut.step()
            assert (cut.text, cut.finish_reason) == (whole.text, "eos")

    asyncio.run(search())


def test_a_constraint_may_hold_for_one_step(decoder: TreeDecoder) -> None:
    async def search() -> None:
        branch = await decoder.root(PROMPT, params(None, suppress_token_ids=(EOS,)))
        await branch.step(max_step_tokens=5)
        step = await branch.step(constraint=Regex("[0-9]{3}"), suppress_token_ids=())
        assert re.fullmatch("[0-9]{3}", step.text)
        assert step.reason == "eos"
        branch.truncate(branch.length - 1)
        step = await branch.step(constraint=Regex("[x-z]{3}"))  # it begins with the step
        assert re.fullmatch("[x-z]{3}", step.text)
        assert step.reason == "complete"  # its end of sequence is suppressed

    asyncio.run(search())


def test_where_nothing_may_follow_the_branch_ends(decoder: TreeDecoder) -> None:
    async def search() -> None:
        stuck = await decoder.root(PROMPT, params(Regex("ab+c"), suppress_token_ids=(98,)))
        step = await stuck.step()
        assert (step.text, step.reason, stuck.finish_reason) == ("a", "dead_end", "dead_end")
        assert await stuck.step() == Step("", (), (), (), "dead_end")
        done = await decoder.root(PROMPT, params(Regex("abc"), suppress_token_ids=(EOS,)))
        step = await done.step()
        assert (step.text, step.reason) == ("abc", "complete")
        done.truncate(done.length - 1)
        assert (await done.step(suppress_token_ids=())).reason == "eos"

    asyncio.run(search())


def test_penalties_cannot_force_what_is_forbidden(decoder: TreeDecoder) -> None:
    async def search() -> None:
        sampling = params(Regex("[ab]{6}"), logit_bias={120: 100.0, 97: -100.0}, presence_penalty=2.0)
        branch = await decoder.root(PROMPT, sampling)
        assert (await branch.step()).text == "bbbbbb"

    asyncio.run(search())


def test_the_models_impossible_tokens_are_drawn_where_only_they_are_allowed(decoder: TreeDecoder) -> None:
    head = decoder.model.lm_head.weight
    before = head.detach().clone()

    async def search() -> None:
        with torch.no_grad():
            head[:] = 0.0
        branch = await decoder.root(PROMPT, params(Regex("xyz"), logit_bias={120: -100, 121: -100}))
        assert (await branch.step()).text == "xyz"

    try:
        asyncio.run(search())
    finally:
        with torch.no_grad():
            head[:] = before
        decoder.weights_changed()


def test_a_branch_does_not_depend_on_company(decoder: TreeDecoder) -> None:
    async def drawn(count: int) -> list[Step]:
        constraints = [Regex("[a-z]{20}"), None, JSONSchema(SCHEMA), Choice(["left", "right"])]
        roots = [await decoder.root(PROMPT, params(c, max_step_tokens=10)) for c in constraints[:count]]
        return await gather(root.step() for root in roots)

    assert asyncio.run(drawn(2)) == asyncio.run(drawn(4))[:2]
    assert asyncio.run(drawn(1)) == asyncio.run(drawn(4))[:1]


# -- forced tokens, forks, cuts


def test_forced_tokens_that_break_it_are_refused_and_change_nothing(decoder: TreeDecoder) -> None:
    async def search() -> None:
        branch = await decoder.root(PROMPT, params(Regex("ab+c?")))
        await branch.extend("ab")
        before, pages = branch.snapshot(), decoder.stats()
        for tokens in ("bx", "cc", [EOS, 98], [257]):
            with pytest.raises(ConstraintError, match=r"number . after the prompt"):
                await branch.extend(tokens)
            ids = tuple(decoder.runtime.reader.ids(tokens))
            numbers = (0.0,) * len(ids)
            with pytest.raises(ConstraintError):
                await branch.replay(Step("", ids, numbers, numbers, "stop_token"))
        with pytest.raises(ConstraintError):
            await branch.read("x", [0])
        with pytest.raises(ConstraintError):
            await branch.extend_embeds(torch.zeros(1, decoder.hidden_size))
        assert branch.snapshot() == before
        assert decoder.stats().forward_tokens == pages.forward_tokens
        await branch.extend("bc")
        assert (await branch.step()).tokens == (EOS,)
        with pytest.raises(ConstraintError):  # behind the end of the sequence
            await branch.extend("b")
        branch.truncate(branch.length - 2)
        await branch.extend("b")
        assert branch.text == "abbb"

    asyncio.run(search())


def test_other_text_is_scored_on_copies(decoder: TreeDecoder) -> None:
    async def search() -> None:
        branch = await decoder.root(PROMPT, params(Regex("[0-9]+")))
        await branch.step(max_step_tokens=3)
        assert len(await branch.logprobs_of(" no number")) == 10
        copy = branch.copy()
        await copy.extend(" Is it right?")
        copy.release()
        assert branch.sampling.constraint == Regex("[0-9]+")
        (score,) = await self_evaluation(yes="y", no="n")([branch])  # it asks a question of a copy
        assert 0 <= score <= 1

    asyncio.run(search())


def test_a_branch_takes_no_other_constraint_for_a_step(decoder: TreeDecoder) -> None:
    async def search() -> None:
        branch = await decoder.root(PROMPT, params(Regex("[0-9]+")))
        for other in (None, Regex("[a-z]+")):
            with pytest.raises(ValueError, match=r"constraint: got .*, expected the branch's own"):
                await branch.step(constraint=other)
        assert (await branch.step(constraint=Regex("[0-9]+"), max_step_tokens=2)).text.isdigit()

    asyncio.run(search())


def test_a_cancelled_step_goes_on(decoder: TreeDecoder) -> None:
    async def search() -> None:
        branch, whole = [await decoder.root(PROMPT, params(Regex("[a-z]{30}"))) for _ in range(2)]
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
def test_a_saved_branch_goes_on(decoder: TreeDecoder, constraint: Constraint) -> None:
    async def search() -> None:
        branch = await decoder.root(PROMPT, params(constraint, max_step_tokens=5))
        await branch.step()
        state = branch.snapshot()
        if isinstance(constraint, Pairs):
            with pytest.raises(ValueError, match="constraint: got a Pairs, expected one of JSONSchema"):
                state.to_dict()
        else:
            state = BranchState.from_dict(json.loads(json.dumps(state.to_dict())))
            assert state == branch.snapshot()
        again = await decoder.restore(state)
        assert await again.step() == await branch.step()
        assert re.fullmatch("([a-c];)*[a-c]?", again.text)

    asyncio.run(search())


def test_a_saved_branch_whose_tokens_break_it_is_refused(decoder: TreeDecoder) -> None:
    async def search() -> None:
        branch = await decoder.root(PROMPT, params(Regex("[a-c]{5}"), max_step_tokens=5))
        await branch.step()
        data = branch.snapshot().to_dict()
        data["tokens"][-2] = 65
        with pytest.raises(ConstraintError, match="got 65 as number 4 after the prompt"):
            await decoder.restore(BranchState.from_dict(data))

    asyncio.run(search())


# -- what is refused


@pytest.mark.parametrize(
    ("constraint", "words"),
    [
        (Regex("("), "pattern: got what llguidance refuses"),
        (JSONSchema({"type": "objec"}), "schema: got what llguidance refuses"),
        (Grammar("root ::= ("), "grammar: got text that is neither GBNF nor Lark"),
        (Grammar("start: missing"), "grammar: got what llguidance refuses"),
    ],
)
def test_a_malformed_constraint_is_refused_at_the_root(
    decoder: TreeDecoder, constraint: Constraint, words: str
) -> None:
    async def search() -> None:
        before = decoder.stats().forward_tokens
        with pytest.raises(ConstraintError, match=words) as refused:
            await decoder.root(PROMPT, params(constraint))
        assert "<state>" not in str(refused.value)
        branch = await decoder.root(PROMPT)
        fed = decoder.stats().forward_tokens
        with pytest.raises(ConstraintError, match=words):
            await branch.step(constraint=constraint)
        assert (decoder.stats().forward_tokens, before) == (fed, 0)
        assert not branch.busy
        branch.release()

    asyncio.run(search())


@pytest.mark.parametrize(
    ("make", "kind", "words"),
    [
        (lambda: SamplingParams(constraint="[0-9]"), TypeError, "constraint: got '\\[0-9\\]'"),  # type: ignore[arg-type]
        (lambda: Regex(5), TypeError, "pattern: got int"),  # type: ignore[arg-type]
        (lambda: Grammar(None), TypeError, "text: got NoneType"),  # type: ignore[arg-type]
        (lambda: Choice("abc"), TypeError, "options: got 'abc'"),
        (lambda: Choice([]), TypeError, "options: got"),
        (lambda: Choice(["a", ""]), ValueError, "options\\[1\\]: got ''"),
        (lambda: JSONSchema("{"), ValueError, "schema: got '{', expected JSON"),
        (lambda: JSONSchema("[]"), ValueError, "schema: got '\\[\\]', expected a JSON object"),
        (lambda: JSONSchema({"a": object()}), ValueError, "schema: got"),
        (lambda: JSONSchema(5), TypeError, "schema: got 5"),  # type: ignore[arg-type]
        (lambda: SamplingParams.from_dict({"constraint": {"kind": "else"}}), ValueError, "constraint: got"),
        (lambda: SamplingParams.from_dict({"constraint": [1]}), ValueError, "constraint: got"),
    ],
)
def test_arguments_of_wrong_kind(make: Any, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        make()


@pytest.mark.parametrize("constraint", [JSONSchema({"b": 1, "a": [2]}, whitespace=False), Choice(["x", "é"])])
def test_constraints_are_data(constraint: Constraint) -> None:
    sampling = params(constraint)
    again = SamplingParams.from_dict(json.loads(json.dumps(sampling.to_dict())))
    assert again == sampling
    assert hash(again) == hash(sampling)


@pytest.mark.parametrize("name", ["byte_level", "llama2", "gemma", "unigram", "gguf", "metaspace_bytes"])
def test_tokens_are_what_they_decode_to(name: str) -> None:
    """In every vocabulary the tokens that begin one of these texts are allowed, and no others."""
    vocabulary = VOCABULARIES[name]()
    texts = ["☃!", " Answer", "日本", "\n\nEND"]
    state = Choice(texts).start(vocabulary.tokenizer)
    expected = {
        id_
        for id_, piece in vocabulary.behind.items()
        if piece and id_ not in vocabulary.special and any(text.encode().startswith(piece) for text in texts)
    }
    assert set(np.flatnonzero(state.mask()).tolist()) == expected


def test_a_tokenizer_whose_tokens_have_no_bytes_is_refused() -> None:
    with pytest.raises(TypeError, match="expected a fast one of transformers whose tokens decode each"):
        Regex("a").start(VOCABULARIES["slow"]().tokenizer)


@given(st.lists(st.text(min_size=1, max_size=6), min_size=1, max_size=4, unique=True))
@settings(max_examples=60, deadline=None)
def test_any_texts_can_be_chosen_from(texts: list[str]) -> None:
    """Each of them is accepted byte by byte, and what is none of them is not."""
    state = Choice(texts).start(TOKENIZER)
    for text in texts:
        place = state.fork()
        assert all(place.advance(byte) for byte in text.encode())
        assert place.accepts
        place.rollback(1)
        assert place.accepts == (text.encode()[:-1] in [other.encode() for other in texts])
    assert not state.accepts


TOKENIZER = byte_tokenizer()
