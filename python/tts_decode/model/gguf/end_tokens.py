"""Finds the tokens that end a text, by a GGUF file's keys and by the tokens' own text, as llama.cpp does.

Converters often omit these keys, or mark such a token as normal. llama.cpp (src/llama-vocab.cpp) then uses
lists of texts, and so does this module.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .token_types import CONTROL, NORMAL, USER_DEFINED

# Ends of a text, a turn, a message or a tool call.
_ENDS = (
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "<\uff5cend\u2581of\u2581sentence\uff5c>",
    "[e~[",
)
# Tokens for fill-in-the-middle, by the names of their keys.
_INFILL: dict[str, tuple[str, ...]] = {
    "fim_pre": (
        "<|fim_prefix|>",
        "<fim-prefix>",
        "<fim_prefix>",
        "<\uff5cfim\u2581begin\uff5c>",
        "<PRE>",
        "\u2581<PRE>",
        "<|code_prefix|>",
        "<|prefix|>",
    ),
    "fim_suf": (
        "<|fim_suffix|>",
        "<fim-suffix>",
        "<fim_suffix>",
        "<\uff5cfim\u2581hole\uff5c>",
        "<SUF>",
        "\u2581<SUF>",
        "<|code_suffix|>",
        "<|suffix|>",
    ),
    "fim_mid": (
        "<|fim_middle|>",
        "<fim-middle>",
        "<fim_middle>",
        "<\uff5cfim\u2581end\uff5c>",
        "<MID>",
        "\u2581<MID>",
        "<|code_middle|>",
        "<|middle|>",
    ),
    "fim_pad": ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"),
    "fim_rep": ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"),
    "fim_sep": ("<|file_sep|>",),
}
_OLDER_KEYS = {"fim_pre": "prefix", "fim_suf": "suffix", "fim_mid": "middle"}  # they take precedence
_INFILL_ENDS = ("fim_pad", "fim_rep", "fim_sep")
_SHOWN = ("<|channel|>", "<|message|>", "<|start|>", "<|constrain|>")  # of gpt-oss: part of the text

NAMES = ("bos", "eos", "eot", "eom", "unknown", "padding", *_INFILL, *_OLDER_KEYS.values())


@dataclass(frozen=True)
class Roles:
    """ends: ids, `eos` first. types: corrections of the types in the file, by id."""

    ends: tuple[int, ...]
    types: Mapping[int, int]


def roles_of(ids: Mapping[str, int], named: Mapping[str, int | None]) -> Roles:
    """Finds the end tokens and the corrected types.

    ids: of all tokens, by text. named: ids by each of `NAMES`, from `tokenizer.ggml.NAME_token_id`.
    """
    found = [ids[text] for text in _ENDS if text in ids]
    types = dict.fromkeys(found, CONTROL)
    infill = {}
    for name, texts in _INFILL.items():
        older = named[_OLDER_KEYS[name]] if name in _OLDER_KEYS else None
        token = named[name] if older is None else older
        if token is None:
            token = min((ids[text] for text in texts if text in ids), default=None)
            if token is not None:
                types[token] = CONTROL
        infill[name] = token
    types |= {ids[text]: USER_DEFINED for text in _SHOWN if text in ids}
    by_key = [named[name] for name in ("eos", "eot", "eom")] + [infill[name] for name in _INFILL_ENDS]
    ends = list(dict.fromkeys(token for token in [*by_key, *sorted(found)] if token is not None))
    for text, kind in _no_ends(frozenset(text for text in _ENDS if ids.get(text) in ends)):
        ends.remove(ids[text])
        types[ids[text]] = kind
    return Roles(tuple(ends), types)


def _no_ends(texts: frozenset[str]) -> list[tuple[str, int]]:
    """Returns the texts that end nothing when the others are present, with their types in that case."""
    found = []
    calls = texts & {"<|call|>", "<|calls|>"}
    if "<|end|>" in texts and calls and texts & {"<|return|>", "<|flush|>"}:
        found.append(("<|end|>", USER_DEFINED))
    if {"<|tool_response>", "</s>"} <= texts:
        found.append(("</s>", NORMAL))
    return found
