"""The tokenizer of a GGUF file: what transformers' conversion leaves out, and what is refused.

Source of the rules: llama.cpp (src/llama-vocab.cpp), which defines the format.
"""

from __future__ import annotations

import math
from typing import Any

from tokenizers import decoders, normalizers, pre_tokenizers

from .header import Header

_BYTE_LEVEL, _SENTENCEPIECE = "gpt2", "llama"  # values of tokenizer.ggml.model

# Values of tokenizer.ggml.pre that split text as GPT-2 does, which is what transformers falls back to.
_GPT2_SPLIT = frozenset(
    {"gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "gigachat", "a.x-4.0", "mellum", "granite-docling"}
)
# As GPT-2 does, each digit on its own.
_DIGITS_SPLIT = frozenset({"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"})
# Whose words that are tokens are not merged from their parts, and which begin texts with BOS.
_WHOLE_WORDS = frozenset(
    {"llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "tekken"}
)


def refuse_tokenizer(header: Header) -> None:
    """Raises ModelLoadError where the converted tokenizer would give other tokens than the file's."""
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    tokens = vocabulary_size(header)
    if header.integer("vocab_size", tokens) != tokens:
        raise header.refuse(header.path("vocab_size"), f"{tokens}, as many as tokenizer.ggml.tokens")
    for key in ("tokenizer.ggml.token_type", "tokenizer.ggml.scores"):
        values = header.metadata.get(key, [0] * tokens)
        if not _is_a_number_each(values, tokens):
            raise header.refuse(key, f"{tokens} finite numbers, one for each token")
    if not isinstance(header.metadata.get("tokenizer.chat_template", ""), str):
        raise header.refuse("tokenizer.chat_template", "a text")
    model = _value(header, "model", str, None)
    if model not in (_BYTE_LEVEL, _SENTENCEPIECE):
        raise header.refuse("tokenizer.ggml.model", f"{_BYTE_LEVEL!r} or {_SENTENCEPIECE!r}")
    merges, scores = "tokenizer.ggml.merges", "tokenizer.ggml.scores"
    if merges not in header.metadata and (model == _BYTE_LEVEL or scores not in header.metadata):
        raise header.refuse(merges if model == _BYTE_LEVEL else scores, "how tokens are merged")
    split = _value(header, "pre", str, "gpt-2")
    if model == _BYTE_LEVEL and split not in _GPT2_SPLIT | _DIGITS_SPLIT | GGUF_PRE_TOKENIZER_SPLITS.keys():
        raise header.refuse("tokenizer.ggml.pre", "a way to split text that is known here")
    for key in ("add_bos_token", "add_eos_token", "add_space_prefix"):
        _value(header, key, bool, False)
    for name in ("bos", "eos"):
        if _value(header, f"add_{name}_token", bool, False) and special_token(header, name) is None:
            raise header.refuse(f"tokenizer.ggml.{name}_token_id", f"an id, as add_{name}_token is true")
    for name in ("bos", "eos", "eot", "eom", "unknown", "padding"):
        special_token(header, name)
    if header.name.startswith("gemma") and _value(header, "add_space_prefix", bool, False):
        raise header.refuse("tokenizer.ggml.add_space_prefix", "false, as for every Gemma")


def _is_a_number_each(values: Any, count: int) -> bool:
    return (
        isinstance(values, list)
        and len(values) == count
        and all(isinstance(value, int | float) and math.isfinite(value) for value in values)
    )


def vocabulary_size(header: Header) -> int:
    tokens = header.metadata.get("tokenizer.ggml.tokens")
    if type(tokens) is not int or tokens < 1:  # the reader leaves an array of texts as its length
        raise header.refuse("tokenizer.ggml.tokens", "the texts of the tokens")
    return tokens


def special_token(header: Header, name: str) -> int | None:
    """The id of the token that the key `tokenizer.ggml.<name>_token_id` names."""
    token: int | None = _value(header, f"{name}_token_id", int, None)
    if token is not None and not 0 <= token < vocabulary_size(header):
        raise header.refuse(
            f"tokenizer.ggml.{name}_token_id", f"an id from 0 to below {vocabulary_size(header)}"
        )
    return token


def end_tokens(header: Header) -> list[int]:
    """Ids of the tokens that end a text: of the end of the text, of a turn and of a message."""
    named = [special_token(header, name) for name in ("eos", "eot", "eom")]
    return list(dict.fromkeys(token for token in named if token is not None))


def finish_tokenizer(header: Header, tokenizer: Any) -> None:
    """Sets on the converted tokenizer what the conversion leaves out."""
    backend = tokenizer.backend_tokenizer
    model, split = _value(header, "model", str, None), _value(header, "pre", str, "gpt-2")
    if model == _BYTE_LEVEL:
        if split in _DIGITS_SPLIT:
            backend.pre_tokenizer = pre_tokenizers.Sequence(
                [
                    pre_tokenizers.Digits(individual_digits=True),
                    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
                ]
            )
        backend.model.ignore_merges = split in _WHOLE_WORDS
    elif not header.name.startswith("gemma"):
        _mark_spaces(backend, _value(header, "add_space_prefix", bool, True))
    begins = model == _SENTENCEPIECE or split in _WHOLE_WORDS
    tokenizer.add_bos_token = (
        _value(header, "add_bos_token", bool, begins) and tokenizer.bos_token is not None
    )
    tokenizer.add_eos_token = _value(header, "add_eos_token", bool, False)


def _mark_spaces(backend: Any, prefix: bool) -> None:
    """Spaces become "▁"; with `prefix` one more stands before each text, and after each special token."""
    before: list[Any] = [normalizers.Prepend("▁")] if prefix else []
    after: list[Any] = [decoders.Strip(" ", left=1)] if prefix else []
    backend.normalizer = normalizers.Sequence([*before, normalizers.Replace(" ", "▁")])
    backend.pre_tokenizer = None
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *after]
    )


def _value(header: Header, key: str, kind: type, default: Any) -> Any:
    path = f"tokenizer.ggml.{key}"
    value = header.metadata.get(path, default)
    if value is not default and type(value) is not kind:
        raise header.refuse(path, {str: "a text", bool: "true or false", int: "an integer"}[kind])
    return value
