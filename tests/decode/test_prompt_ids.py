"""Prompts whose ids the caller gives, and what is public of a branch's text."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from primitives import PROMPT, make
from tiny_models import EOS, byte_tokenizer
from transformers import PreTrainedModel
from tts_decode import BranchState, TreeDecoder

CHAT = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "why?"}]


@pytest.mark.parametrize(
    ("prompt", "question"), [("as text", "as text"), (CHAT, "why?"), ([98, 99], bytes(PROMPT).decode())]
)
def test_what_is_computed_may_differ_from_what_was_asked(
    model: PreTrainedModel, prompt: Any, question: str
) -> None:
    """For chats no template is needed then."""
    decoder = make(model)

    async def search() -> None:
        root = await decoder.root(prompt, ids=PROMPT)
        assert (root.tokens, root.prompt_length, root.prompt) == (PROMPT, len(PROMPT), prompt)
        assert root.prompt is not prompt or isinstance(prompt, str)
        (child,) = root.fork()
        again = await decoder.restore(BranchState.from_dict(child.snapshot().to_dict()))
        assert [branch.question for branch in (root, child, again)] == [question] * 3
        same = await decoder.root(PROMPT, root.sampling)
        assert (await root.step()).tokens == (await same.step()).tokens

    asyncio.run(search())


@pytest.mark.parametrize(
    ("ids", "kind", "words"),
    [
        ([], ValueError, "prompt: got no tokens"),
        ([5, 260], ValueError, r"tokens\[1\]: got 260"),
        (["a"], TypeError, r"tokens\[0\]: got 'a'"),
        (5, TypeError, "tokens: got int"),
    ],
)
def test_ids_that_are_none(model: PreTrainedModel, ids: Any, kind: type[Exception], words: str) -> None:
    decoder = make(model)
    with pytest.raises(kind, match=words):
        decoder.run(decoder.root("text", ids=ids))


def test_texts_with_and_without_special_tokens(model: PreTrainedModel) -> None:
    tokenizer = byte_tokenizer()
    decoder = TreeDecoder(model, tokenizer, kv_bytes=1 << 22)

    async def search() -> None:
        root = await decoder.root(PROMPT)
        await root.extend([*b"ab", EOS, *b"c"])
        assert root.text_from(root.prompt_length) == root.text == "abc"
        assert root.text_from(root.prompt_length, special=True) == "ab<eos>c"
        assert root.text_from(root.length - 1, special=True) == "c"
        assert root.tokenizer is tokenizer

    asyncio.run(search())
