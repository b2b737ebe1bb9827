"""Constraints as data: what is refused, what is saved, and whose tokens they are made of."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import numpy as np
import pytest
from constrained import params
from hypothesis import given, settings
from hypothesis import strategies as st
from primitives import PROMPT
from tiny_models import byte_tokenizer
from tiny_tokenizers import VOCABULARIES
from tts_decode import (
    Choice,
    Constraint,
    ConstraintError,
    Grammar,
    JSONSchema,
    Regex,
    SamplingParams,
    TreeDecoder,
)

pytest.importorskip("llguidance")
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    ("constraint", "words"),
    [
        (Regex("("), "pattern: got what llguidance refuses"),
        (JSONSchema({"type": "objec"}), "schema: got what llguidance refuses"),
        (Grammar("root ::= ("), "grammar: got what llguidance refuses"),
        (Grammar("start: missing"), "grammar: got what llguidance refuses"),
        (Grammar(""), "grammar: got what llguidance refuses"),
        (Grammar("root ::= " + "(" * 50_000), "grammar: got what llguidance refuses"),
        (Grammar("start: start"), "grammar: got what no text matches"),
        (Regex("(" * 50_000 + ")" * 50_000), "pattern: got what llguidance refuses"),
        (Regex("\ud800"), "pattern: got what llguidance refuses"),
        (JSONSchema({"not": {}}), "schema: got what llguidance refuses"),
        (JSONSchema({"type": "integer", "minimum": 2, "maximum": 1}), "schema: got what llguidance refuses"),
        (JSONSchema({"$ref": "http://elsewhere/schema"}), "schema: got what llguidance refuses"),
        (JSONSchema('{"items":' * 300 + "{}" + "}" * 300), "schema: got what llguidance refuses"),
    ],
)
def test_a_malformed_constraint_is_refused_at_the_root(
    ending_decoder: TreeDecoder, constraint: Constraint, words: str
) -> None:
    async def search() -> None:
        before = ending_decoder.stats().forward_tokens
        with pytest.raises(ConstraintError, match=words) as refused:
            await ending_decoder.root(PROMPT, params(constraint))
        assert "<state>" not in str(refused.value)
        assert len(str(refused.value)) < 400
        branch = await ending_decoder.root(PROMPT)
        fed = ending_decoder.stats().forward_tokens
        with pytest.raises(ConstraintError, match=words):
            await branch.step(constraint=constraint)
        assert (ending_decoder.stats().forward_tokens, before) == (fed, 0)
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
@settings(max_examples=60)
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
