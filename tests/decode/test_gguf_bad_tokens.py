"""Vocabularies of GGUF files that cannot be right are refused by the name of the key, in one line."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest
from gguf_vocabularies import byte_level_keys, header_of, read, sentencepiece_keys
from tiny_gguf import write_tiny_gguf
from tts_decode.core.prompts import PromptReader
from tts_decode.errors import ModelLoadError
from tts_decode.model.gguf.tokenizer import refuse_tokenizer
from tts_decode.model.loading import load_config, load_model

pytestmark = pytest.mark.usefixtures("one_thread", "cache")

NAN, INFINITE = float("nan"), float("inf")
BYTE_LEVEL, PIECES = byte_level_keys(["ab"], merges=["a b"]), sentencepiece_keys({"a": -1.0})


def refused(keys: dict[str, Any], key: str) -> str:
    with pytest.raises(ModelLoadError) as error:
        refuse_tokenizer(header_of(keys))
    message = str(error.value)
    assert message.isprintable()
    assert f" {key}: got " in message
    return message


@pytest.mark.parametrize("kind", ["bert", "t5", "rwkv", "plamo2", "gemma4", "none", "LLAMA", "\n"])
def test_other_kinds_of_tokenizers(kind: str) -> None:
    message = refused({**BYTE_LEVEL, "tokenizer.ggml.model": kind}, "tokenizer.ggml.model")
    assert f"got {kind!r}, expected 'gpt2' or 'llama'" in message
    assert "use the safetensors weights" in message


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model", None),
        ("model", 3),
        ("pre", ["gpt-2"]),
        ("tokens", None),
        ("tokens", "abc"),
        ("tokens", []),
        ("tokens", ["a", 3]),
        ("tokens", ["a", "b", "a"]),
        ("token_type", [1] * 256),
        ("token_type", [1] * 258),
        ("token_type", [1] * 256 + [7]),
        ("token_type", [1] * 256 + [-1]),
        ("token_type", [1.0] * 257),
        ("token_type", [True] * 257),
        ("token_type", 257),
        ("scores", [0.0] * 256),
        ("merges", None),
        ("merges", 4),
        ("merges", [["a", "b"]]),
        ("merges", ["ab"]),
        ("merges", [""]),
        ("merges", [" "]),
        ("merges", ["a b c"]),
        ("merges", ["a z"]),  # into no token
        ("merges", ["a b", "a \u65e5"]),
        ("merges", ["a b", "ab ab"]),
        ("bos_token_id", 257),
        ("bos_token_id", -1),
        ("eos_token_id", 2.0),
        ("eos_token_id", True),
        ("fim_pad_token_id", 2**32 - 1),
        ("add_bos_token", 1),
        ("add_eos_token", "yes"),
        ("add_space_prefix", 0),
    ],
)
def test_byte_level(key: str, value: object) -> None:
    given = {**BYTE_LEVEL, f"tokenizer.ggml.{key}": value}
    kept = {path: value for path, value in given.items() if value is not None}
    refused(kept, f"tokenizer.ggml.{key}")


@pytest.mark.parametrize(
    "scores",
    [None, [0.0], [0.0] * 261, [0.0] * 259 + [NAN], [INFINITE] * 260, ["0"] * 260, [True] * 260, 260],
)
def test_scores(scores: object) -> None:
    assert len(PIECES["tokenizer.ggml.tokens"]) == 260
    given = {**PIECES, "tokenizer.ggml.scores": scores}
    refused({path: value for path, value in given.items() if value is not None}, "tokenizer.ggml.scores")


def test_tokens_that_are_there_twice_are_named() -> None:
    message = refused(byte_level_keys(["xyz", "uvw", "xyz"]), "tokenizer.ggml.tokens")
    assert "ids 256 and 258 have the same" in message


def test_empty_tokens_have_names() -> None:
    """As in llama.cpp: some files hold several."""
    tokenizer = read(byte_level_keys(["", ""]))
    assert tokenizer.convert_ids_to_tokens([256, 257]) == ["[EMPTY_256]", "[EMPTY_257]"]


def test_the_first_of_equal_merges_counts() -> None:
    keys = byte_level_keys(["ab", "bc"], merges=["a b", "b c", "a b"])
    assert read(keys).convert_ids_to_tokens(read(keys)("abc").input_ids) == ["ab", "c"]


def test_a_token_of_too_many_letters() -> None:
    message = refused(sentencepiece_keys({"a" * 1001: -1.0}), "tokenizer.ggml.tokens")
    assert "id 259" in message
    assert read(sentencepiece_keys({"a" * 1000: -1.0}))("a").input_ids


def test_named_tokens_that_cannot_stand_first() -> None:
    keys = byte_level_keys(["<s> x"], {"<s> x": 3}, bos_token_id=256, add_bos_token=True)
    refused(keys, "tokenizer.ggml.bos_token_id")
    refused(byte_level_keys(add_eos_token=True), "tokenizer.ggml.eos_token_id")


def test_a_padding_token_that_is_part_of_texts_stays_so() -> None:
    tokenizer = read(byte_level_keys(padding_token_id=0, unknown_token_id=1))
    assert tokenizer.pad_token is None
    assert tokenizer.unk_token is None
    assert tokenizer.decode(tokenizer("!").input_ids, skip_special_tokens=True) == "!"


@pytest.mark.parametrize("name", ["../../up", "a/b", "", "a b", "\x1b[2J", "n" * 101, "tool_use/.."])
def test_names_of_templates_that_are_no_names(name: str) -> None:
    """They become names of files in the cache."""
    with pytest.raises(ModelLoadError, match=r"tokenizer\.chat_template.*: got .*, expected ") as error:
        refuse_tokenizer(
            header_of({**BYTE_LEVEL, f"tokenizer.chat_template.{name}": "x", "tokenizer.chat_template": "y"})
        )
    assert str(error.value).isprintable()


def test_templates_by_their_names(file: Path) -> None:
    user = [{"role": "user", "content": "hi"}]
    keys = {
        "tokenizer.chat_template": "{{ messages[0].content }}!",
        "tokenizer.chat_template.tool_use": "tools",
    }
    write_tiny_gguf(file, keys=keys)
    for _ in range(2):  # converted, then from the copy
        _, tokenizer = load_model(file, "float32")
        assert tokenizer.apply_chat_template(user, tokenize=False) == "hi!"
        assert tokenizer.apply_chat_template(user, tokenize=False, chat_template="tool_use") == "tools"


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages[0].content",
        "{% for %}",
        "{{ raise_exception('roles') }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ no_such() }}",
    ],
)
def test_broken_templates_are_refused_when_they_are_used(template: str) -> None:
    tokenizer = read({**BYTE_LEVEL, "tokenizer.chat_template": template})
    assert tokenizer("ab").input_ids == [256]
    with pytest.raises(
        ValueError, match="prompt: got messages that the chat template of the model refuses"
    ) as error:
        PromptReader(tokenizer, 257).prompt([{"role": "user", "content": "hi"}])
    assert str(error.value).isprintable()


def patched(file: Path, key: str, change: Any) -> None:
    """Changes the count and what follows of an array of texts in a file."""
    content = bytearray(file.read_bytes())
    at = content.index(key.encode()) + len(key) + 8  # behind the kind of the value and of its elements
    change(content, at)
    file.write_bytes(content)


def test_arrays_longer_than_the_file(file: Path) -> None:
    for key in ("tokenizer.ggml.tokens", "tokenizer.ggml.merges", "tokenizer.ggml.token_type"):
        for count in (2**24, 2**40, 2**64 - 1):
            write_tiny_gguf(file)
            patched(file, key, lambda content, at: struct.pack_into("<Q", content, at, count))  # noqa: B023
            for load in (load_config, load_model):
                with pytest.raises(ModelLoadError, match=rf"is damaged: {key} .*; fetch it again"):
                    load(file)


def test_texts_that_are_no_utf_8(file: Path) -> None:
    write_tiny_gguf(file)

    def change(content: bytearray, at: int) -> None:
        content[at + 16] = 0xFF  # the first letter of the first token, behind the count and its length

    patched(file, "tokenizer.ggml.tokens", change)
    with pytest.raises(
        ModelLoadError, match=r"is damaged: tokenizer\.ggml\.tokens holds text that is not UTF-8"
    ):
        load_config(file)


def test_a_text_longer_than_the_file(file: Path) -> None:
    write_tiny_gguf(file)
    patched(file, "tokenizer.ggml.tokens", lambda content, at: struct.pack_into("<Q", content, at + 8, 2**63))
    with pytest.raises(ModelLoadError, match=r"tokenizer\.ggml\.tokens ends behind the end of the file"):
        load_config(file)
