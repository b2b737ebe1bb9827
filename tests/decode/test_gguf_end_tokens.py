"""Tokens that end a branch: those named by keys, and those that llama.cpp recognises by their text."""

from __future__ import annotations

from typing import Any

import pytest
from gguf_vocabularies import (
    CONTROL,
    NORMAL,
    USER_DEFINED,
    byte_level_keys,
    header_of,
    named,
    read,
    sentencepiece_keys,
)
from tts_decode.model.gguf.vocabulary import Vocabulary

# Of llama.cpp, src/llama-vocab.cpp.
ENDS = [
    *(
        "<|eot_id|>",
        "<|im_end|>",
        "<|end|>",
        "<|return|>",
        "<|call|>",
        "<|flush|>",
        "<|calls|>",
        "<end_of_turn>",
    ),
    *("<|endoftext|>", "</s>", "<|eom_id|>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>", "<eos>"),
    *("<end_of_utterance>", "<turn|>", "<|tool_response>", "<｜end▁of▁sentence｜>", "[e~["),  # noqa: RUF001
]
INFILL_ENDS = [
    *(
        "<|fim_pad|>",
        "<fim-pad>",
        "<fim_pad>",
        "<PAD>",
        "[PAD]",
        "<|fim_repo|>",
        "<|repo_name|>",
        "<fim-repo>",
    ),
    *("<REPO>", "<reponame>", "<|file_sep|>"),
]
INFILL = [
    *("<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>", "<｜fim▁begin｜>", "<PRE>", "▁<PRE>"),  # noqa: RUF001
    *("<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>", "<｜fim▁hole｜>", "<SUF>", "▁<SUF>"),  # noqa: RUF001
    *("<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<｜fim▁end｜>", "<MID>", "▁<MID>"),  # noqa: RUF001
    *("<|code_prefix|>", "<|prefix|>", "<|code_suffix|>", "<|suffix|>", "<|code_middle|>", "<|middle|>"),
]


def ends_of(keys: dict[str, Any]) -> set[str]:
    vocabulary = Vocabulary.read(header_of(keys))
    return {vocabulary.tokens[token] for token in vocabulary.ends}


@pytest.mark.parametrize("text", [*ENDS, *INFILL_ENDS])
def test_ends_by_text(text: str) -> None:
    """Whatever type the file gives them, they are control tokens."""
    for kind in (CONTROL, NORMAL, USER_DEFINED):
        keys = byte_level_keys([text, "x>"], {text: kind})
        assert ends_of(keys) == {text}
        tokenizer = read(keys)
        assert tokenizer(text).input_ids == [256]
        assert tokenizer.decode([256], skip_special_tokens=True) == ""


@pytest.mark.parametrize("text", INFILL)
def test_tokens_for_filling_in_end_nothing(text: str) -> None:
    keys = byte_level_keys([text])
    assert ends_of(keys) == set()
    assert read(keys)(text).input_ids == [256]


@pytest.mark.parametrize("text", ["<|im_start|>", "<|EOT_ID|>", "<|eot_id|> ", "eos", "<|file_separator|>"])
def test_other_texts_end_nothing(text: str) -> None:
    assert ends_of(byte_level_keys([text], {text: CONTROL})) == set()


def test_ends_by_key() -> None:
    pieces = ["<a>", "<b>", "<c>", "<d>", "<|file_sep|>"]
    keys = byte_level_keys(pieces, dict.fromkeys(pieces, CONTROL))
    assert ends_of(keys) == {"<|file_sep|>"}
    given = named({"eos_token_id": 258, "eot_token_id": 256, "eom_token_id": 257, "fim_sep_token_id": 259})
    vocabulary = Vocabulary.read(header_of({**keys, **given}))
    assert vocabulary.ends == (258, 256, 257, 259)


def test_harmony() -> None:
    """Of gpt-oss and Solar Open: a message that ends, before a call or a return, ends no text."""
    assert ends_of(byte_level_keys(["<|end|>", "<|return|>"])) == {"<|end|>", "<|return|>"}
    for others in ({"<|return|>", "<|call|>"}, {"<|calls|>", "<|flush|>"}):
        keys = byte_level_keys(["<|end|>", "<|channel|>", *sorted(others)], {"<|end|>": CONTROL})
        assert ends_of(keys) == ends_of({**keys, "tokenizer.ggml.eot_token_id": 256}) == others
        tokenizer = read(keys)
        assert tokenizer("<|end|><|channel|>").input_ids == [256, 257]
        assert tokenizer.decode([256, 257, 258], skip_special_tokens=True) == "<|end|><|channel|>"


def test_gemma_4() -> None:
    assert ends_of(byte_level_keys(["</s>", "<|tool_response>", "<turn|>"])) == {
        "<|tool_response>",
        "<turn|>",
    }


def test_sentencepiece_names_its_ends_by_default() -> None:
    keys = sentencepiece_keys({"a": -1.0})
    vocabulary = Vocabulary.read(header_of(keys))
    assert vocabulary.ends == (2,)
    assert [vocabulary.named[name] for name in ("bos", "eos", "unknown")] == [1, 2, 0]
    other = Vocabulary.read(header_of({**keys, "tokenizer.ggml.eos_token_id": 259}))
    assert set(other.ends) == {259, 2}  # </s> by its text


def test_byte_level_vocabularies_name_none_by_default() -> None:
    vocabulary = Vocabulary.read(header_of(byte_level_keys()))
    assert vocabulary.ends == ()
    assert vocabulary.named["bos"] is None
