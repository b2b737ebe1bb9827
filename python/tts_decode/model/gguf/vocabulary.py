"""The vocabulary of a GGUF file: texts, types and scores of tokens, merges, and the tokens that keys name.

Source of the rules: llama.cpp (src/llama-vocab.cpp), which defines the format.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .end_tokens import NAMES, roles_of
from .header import Header
from .token_types import CONTROL, MATCHED, NORMAL, TYPES

BYTE_LEVEL, SENTENCEPIECE = "gpt2", "llama"  # values of tokenizer.ggml.model
# If the file names none. llama.cpp's defaults for byte-level vocabularies (11) are Falcon's and not used.
_DEFAULTS = {SENTENCEPIECE: {"bos": 1, "eos": 2, "unknown": 0}, BYTE_LEVEL: {}}
_LONGEST = 1000  # characters of a token: merging one takes time quadratic in them


@dataclass(frozen=True)
class Vocabulary:
    """The checked values of `tokenizer.ggml.*` about tokens.

    Attributes:
        types: of each token; llama.cpp's corrections by the token's text are applied.
        scores: of each token: the order of merges in a SentencePiece vocabulary; others may lack them.
        merges: of a byte-level vocabulary, in order.
        named: ids by the names of `tokenizer.ggml.NAME_token_id`; None for a missing one.
        ends: ids of the tokens that end a branch, `eos` first.
    """

    model: str
    tokens: list[str]
    types: list[int]
    scores: list[float]
    merges: list[tuple[str, str]]
    named: Mapping[str, int | None]
    ends: tuple[int, ...]

    @classmethod
    def read(cls, header: Header) -> Vocabulary:
        """Reads the vocabulary. Raises ModelLoadError, naming the key, for values that are not supported."""
        model = setting(header, "model", str, None)
        if model not in _DEFAULTS:
            raise header.refuse(
                "tokenizer.ggml.model",
                f"{BYTE_LEVEL!r} or {SENTENCEPIECE!r}: other kinds of tokenizers are not read; use the "
                "safetensors weights of the model, with its own tokenizer",
            )
        tokens = _tokens(header)
        given = _types(header, len(tokens))
        ids = {text: token for token, text in enumerate(tokens)}
        named = {name: _named(header, name, len(tokens), _DEFAULTS[model].get(name)) for name in NAMES}
        roles = roles_of(ids, named)
        types = [roles.types.get(token, kind) for token, kind in enumerate(given)]
        for token in (named["bos"], named["eos"]):
            if token is not None and types[token] not in MATCHED:  # transformers makes them special
                types[token] = CONTROL
        return cls(
            model,
            tokens,
            types,
            _scores(header, len(tokens), needed=model == SENTENCEPIECE),
            _merges(header, ids) if model == BYTE_LEVEL else [],
            named,
            roles.ends,
        )


def setting(header: Header, key: str, kind: type, default: Any) -> Any:
    """Returns the value of `tokenizer.ggml.KEY`, of exactly this type, or the default."""
    path = f"tokenizer.ggml.{key}"
    value = header.metadata.get(path, default)
    if value is not default and type(value) is not kind:
        raise header.refuse(path, {str: "a text", bool: "true or false", int: "an integer"}[kind])
    return value


def _named(header: Header, name: str, size: int, default: int | None) -> int | None:
    key = f"{name}_token_id"
    if f"tokenizer.ggml.{key}" not in header.metadata:
        return default if default is not None and default < size else None
    token: int = setting(header, key, int, None)
    if not 0 <= token < size:
        raise header.refuse(f"tokenizer.ggml.{key}", f"an id from 0 to below {size}")
    return token


def _tokens(header: Header) -> list[str]:
    key = "tokenizer.ggml.tokens"
    texts: Any = header.metadata.get(key)
    if not _are(texts, str) or not texts:
        raise header.refuse(key, "the texts of the tokens")
    tokens = [text or f"[EMPTY_{token}]" for token, text in enumerate(texts)]  # as llama.cpp names them
    if len(set(tokens)) < len(tokens):
        first: dict[str, int] = {}
        twice = next(i for i, text in enumerate(tokens) if first.setdefault(text, i) != i)
        raise header.refuse(key, f"texts that differ: ids {first[tokens[twice]]} and {twice} have the same")
    if max(map(len, tokens)) > _LONGEST:
        longest = max(range(len(tokens)), key=lambda token: len(tokens[token]))
        raise header.refuse(key, f"texts of up to {_LONGEST} letters, which id {longest} has more of")
    if header.integer("vocab_size", len(tokens)) != len(tokens):
        raise header.refuse(header.path("vocab_size"), f"{len(tokens)}, as many as {key}")
    return tokens


def _types(header: Header, size: int) -> list[int]:
    key = "tokenizer.ggml.token_type"
    types: Any = header.metadata.get(key)
    if types is None:
        return [NORMAL] * size
    if not _are(types, int) or len(types) != size or not set(types) <= TYPES:
        raise header.refuse(key, f"{size} types from {min(TYPES)} to {max(TYPES)}, one for each token")
    return list(types)


def _scores(header: Header, size: int, needed: bool) -> list[float]:
    key = "tokenizer.ggml.scores"
    scores: Any = header.metadata.get(key)
    if scores is None and not needed:
        return []
    right = (_are(scores, float) or _are(scores, int)) and len(scores) == size
    if not right or not all(map(math.isfinite, scores)):
        raise header.refuse(key, f"{size} finite numbers, one for each token")
    return list(scores)


def _merges(header: Header, ids: Mapping[str, int]) -> list[tuple[str, str]]:
    key = "tokenizer.ggml.merges"
    lines: Any = header.metadata.get(key)
    if not _are(lines, str):
        raise header.refuse(key, "how tokens are merged")
    merges: dict[tuple[str, str], None] = {}  # the first of equal merges counts
    for i, line in enumerate(lines):
        left, _, right = line[1:].partition(" ")
        left = line[:1] + left
        if left not in ids or right not in ids or left + right not in ids:
            raise header.refuse(key, f"merges of tokens into tokens; number {i} is {line[:100]!r}")
        merges[left, right] = None
    return list(merges)


def _are(values: Any, kind: type) -> bool:
    return isinstance(values, Sequence) and set(map(type, values)) <= {kind} and not isinstance(values, str)
