"""Vocabularies of GGUF files: headers in memory, and byte-level tokenizers as a converter writes them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tts_decode.model.gguf.header import Header
from tts_decode.model.gguf.metadata import Metadata
from tts_decode.model.gguf.tokenizer import read_tokenizer

# The characters that byte-level BPE writes the 256 bytes as (Radford et al. 2019).
_PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
_OTHERS = iter(range(256, 512))
LETTERS = [chr(byte if byte in _PRINTABLE else next(_OTHERS)) for byte in range(256)]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
CORPUS = [
    "The quick brown fox doesn't jump over 12345 lazy dogs; it's 3.14159 and he'll say: DON'T!",
    "def f(x):\n    return x**2 + 1  # naïve\n\n\tfor i in range(10):\n        print(i, end='')\n",
    "日本語の文章です。漢字とかな、カタカナ。中文字符也在这里。한국어 문장도 있습니다.",
    "emoji 😀😃 👩‍👩‍👧 ☃; Ελληνικά, Русский язык, עברית, العربية, हिन्दी; HelloWorld JSONData's",
    "   spaces   and\ttabs\r\n\r\nCRLF   \n  \n\n\nmore 1,000,000.00 $5 + 7 == 12 // a/b/c ...",
] * 3


def byte_level_keys(
    pieces: Sequence[str] = (), types: Mapping[str, int] | None = None, **keys: Any
) -> dict[str, Any]:
    """Of the 256 letters and more pieces, all normal but for `types`. keys: without their namespace."""
    tokens = [*LETTERS, *pieces]
    kinds = [(types or {}).get(token, NORMAL) for token in tokens]
    given = {"model": "gpt2", "pre": "gpt-2", "tokens": tokens, "token_type": kinds, "merges": [], **keys}
    return named(given)


def sentencepiece_keys(
    pieces: Mapping[str, float], types: Mapping[str, int] | None = None, **keys: Any
) -> dict[str, Any]:
    """Of <unk>, <s>, </s>, all bytes, and pieces with their scores, which are normal but for `types`."""
    tokens = ["<unk>", "<s>", "</s>", *BYTES, *pieces]
    fixed = {"<unk>": UNKNOWN, "<s>": CONTROL, "</s>": CONTROL, **dict.fromkeys(BYTES, BYTE), **(types or {})}
    given = {
        "model": "llama",
        "tokens": tokens,
        "token_type": [fixed.get(token, NORMAL) for token in tokens],
        "scores": [float(pieces.get(token, 0.0)) for token in tokens],
        **keys,
    }
    return named(given)


def named(keys: Mapping[str, Any]) -> dict[str, Any]:
    """With the namespace of the tokenizer, but for keys that have one; those that are None are left out."""
    return {
        key if "." in key else f"tokenizer.ggml.{key}": value
        for key, value in keys.items()
        if value is not None
    }


def header_of(keys: Mapping[str, Any], architecture: str = "llama") -> Header:
    return Header(Path("tiny.gguf"), Metadata({"general.architecture": architecture, **keys}, (), 0))


def read(keys: Mapping[str, Any]) -> Any:
    """The tokenizer."""
    return read_tokenizer(header_of(keys))


def keys_of(tokenizer: Tokenizer, pre: str | None, **keys: Any) -> dict[str, Any]:
    """A byte-level tokenizer as a converter of llama.cpp writes it."""
    state = json.loads(tokenizer.to_str())
    vocab: dict[str, int] = state["model"]["vocab"] | {a["content"]: a["id"] for a in state["added_tokens"]}
    tokens = sorted(vocab, key=vocab.__getitem__)
    assert [vocab[token] for token in tokens] == list(range(len(tokens)))
    added = {a["content"]: CONTROL if a["special"] else USER_DEFINED for a in state["added_tokens"]}
    return named(
        {
            "model": "gpt2",
            "pre": pre,
            "tokens": tokens,
            "token_type": [added.get(token, NORMAL) for token in tokens],
            "merges": [" ".join(pair) for pair in state["model"]["merges"]],
            **keys,
        }
    )
