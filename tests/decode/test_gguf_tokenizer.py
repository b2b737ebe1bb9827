"""The tokenizer of a GGUF file gives the tokens that the file's keys ask for, from the converted copy too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny_gguf import TOKENS, write_tiny_gguf
from tiny_gguf_models import CASES, random_model, write_model
from tts_decode.errors import ModelLoadError
from tts_decode.model.loading import load_model

pytestmark = pytest.mark.usefixtures("one_thread", "cache")

BOS, EOS = 1, 2


class Read:
    """The tokenizer of a loaded file."""

    def __init__(self, file: Path, tokens: list[str]) -> None:
        self.tokens = tokens
        _, self.tokenizer = load_model(file, "float32")

    def __call__(self, text: str) -> list[str]:
        return [self.tokens[token] for token in self.tokenizer(text).input_ids]


def byte_level(tmp_path: Path, **keys: Any) -> Read:
    """Of a vocabulary with numbers and a word that no merge leads to."""
    tokens = [*TOKENS[:-4], "12", "Ġ1", "he", "hello"]
    file = tmp_path / "tiny.gguf"
    given = {"tokens": tokens, "merges": ["1 2", "Ġ 1", "h e"], **keys}
    write_tiny_gguf(file, keys={f"tokenizer.ggml.{key}": value for key, value in given.items()})
    return Read(file, tokens)


def test_numbers_stay_whole(tmp_path: Path) -> None:
    assert byte_level(tmp_path, pre="gpt-2")("a 1 12") == ["a", "Ġ1", "Ġ", "12"]


def test_numbers_stay_apart_from_spaces_where_the_file_does_not_say(tmp_path: Path) -> None:
    assert byte_level(tmp_path)("a 1 12") == ["a", "Ġ", "1", "Ġ", "12"]


@pytest.mark.parametrize("split", ["smollm", "command-r"])
def test_each_digit_is_a_token(tmp_path: Path, split: str) -> None:
    assert byte_level(tmp_path, pre=split)("a 1 12") == ["a", "Ġ", "1", "Ġ", "1", "2"]


@pytest.mark.parametrize("split", ["llama-bpe", "tekken"])
def test_words_that_are_tokens_need_no_merges(tmp_path: Path, split: str) -> None:
    """And such vocabularies begin a text with BOS, if the file does not say."""
    assert byte_level(tmp_path, pre=split)("hello") == [TOKENS[BOS], "hello"]
    assert byte_level(tmp_path, pre=split, add_bos_token=False)("hello") == ["hello"]


def test_words_are_merged(tmp_path: Path) -> None:
    assert byte_level(tmp_path)("hello") == ["he", "l", "l", "o"]


@pytest.mark.parametrize(("bos", "eos"), [(True, True), (True, None), (False, True), (None, False)])
def test_bos_and_eos_as_the_file_says(tmp_path: Path, bos: bool | None, eos: bool | None) -> None:
    expected = [TOKENS[BOS]] * (bos is True) + ["N"] + [TOKENS[EOS]] * (eos is True)
    assert byte_level(tmp_path, add_bos_token=bos, add_eos_token=eos)("N") == expected


def test_bos_that_is_not_named(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"bos_token_id: got nothing, expected an id"):
        byte_level(tmp_path, add_bos_token=True, bos_token_id=None)
    assert byte_level(tmp_path, pre="llama-bpe", bos_token_id=None)("N") == ["N"]


@pytest.mark.parametrize("name", ["qwen2", "starcoder2", "phi3"])
def test_no_class_of_a_family_overrules_the_file(tmp_path: Path, name: str) -> None:
    file = tmp_path / "tiny.gguf"
    keys = {"tokenizer.ggml.pre": "smollm", "tokenizer.ggml.add_bos_token": True}
    write_model(file, CASES[name], random_model(CASES[name]), keys)
    for _ in range(2):  # converted, then from the copy
        _, tokenizer = load_model(file, "float32")
        split = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("ab 12")
        assert [piece for piece, _ in split] == ["ab", "Ġ", "1", "2"]
        assert tokenizer("a").input_ids == [BOS, TOKENS.index("a")]


PIECES = [
    "<unk>",
    "<s>",
    "</s>",
    *(f"<0x{byte:02X}>" for byte in range(64)),
    "▁",
    "a",
    "b",
    "ab",
    "▁a",
    "▁ab",
]
PIECES += [f"x{i}" for i in range(len(TOKENS) - len(PIECES))]


def sentencepiece(tmp_path: Path, name: str = "llama", **keys: bool) -> Read:
    """Of a vocabulary with scores and without merges."""
    file = tmp_path / "tiny.gguf"
    written = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": PIECES,
        "tokenizer.ggml.scores": [-float(i) for i in range(len(PIECES))],
        "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 64 + [1] * (len(PIECES) - 67),
        "tokenizer.ggml.merges": None,
        **{f"tokenizer.ggml.{key}": value for key, value in keys.items()},
    }
    write_model(file, CASES[name], random_model(CASES[name]), written)
    return Read(file, PIECES)


@pytest.mark.parametrize("name", ["llama", "phi3"])
@pytest.mark.parametrize("keys", [{}, {"add_space_prefix": True, "add_bos_token": True}])
def test_a_space_before_the_text(tmp_path: Path, name: str, keys: dict[str, bool]) -> None:
    """If the file does not say, llama.cpp adds one, and BOS before it."""
    read = sentencepiece(tmp_path, name, **keys)
    assert read("ab a") == ["<s>", "▁ab", "▁a"]
    assert read(" a\n") == ["<s>", "▁", "▁a", "<0x0A>"]
    assert read("a</s>a") == ["<s>", "▁a", "</s>", "▁a"]
    for text in ("ab a", " a\n"):
        assert read.tokenizer.decode(read.tokenizer(text).input_ids, skip_special_tokens=True) == text


@pytest.mark.parametrize("name", ["llama", "phi3"])
def test_no_space_before_the_text(tmp_path: Path, name: str) -> None:
    read = sentencepiece(tmp_path, name, add_space_prefix=False, add_bos_token=False)
    assert read("ab a") == ["ab", "▁a"]
    assert read(" a\n") == ["▁a", "<0x0A>"]
    assert read.tokenizer.decode(read.tokenizer(" a\n").input_ids) == " a\n"


def test_gemma_is_read_as_its_file_says(tmp_path: Path) -> None:
    assert sentencepiece(tmp_path, "gemma2", add_space_prefix=False)("ab a") == ["<s>", "ab", "▁a"]
    assert sentencepiece(tmp_path, "gemma2")("ab a") == ["<s>", "▁ab", "▁a"]
