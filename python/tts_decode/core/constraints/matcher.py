"""The states of llguidance: a grammar, compiled for a tokenizer, and a text's place in it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper
from llguidance.gbnf_to_lark import GbnfToLarkError, any_to_lark

from ...errors import ConstraintError
from ..detokenizer import token_bytes
from .protocol import ConstraintState


def json_grammar(schema: str, whitespace: bool) -> str:
    return LLMatcher.grammar_from_json_schema(schema, overrides={"whitespace_flexible": whitespace})


def regex_grammar(pattern: str) -> str:
    return LLMatcher.grammar_from_regex(pattern)


def grammar(text: str) -> str:
    try:
        return LLMatcher.grammar_from_lark(any_to_lark(text))
    except GbnfToLarkError as cause:
        raise ConstraintError(f"grammar: got text that is neither GBNF nor Lark: {cause}") from cause


def choice_grammar(options: Sequence[str]) -> str:
    return regex_grammar("|".join(map(_escaped, options)))


def start(source: str, tokenizer: Any, name: str) -> ConstraintState:
    """Before the first token of a text. source: of a function above. name: of what it comes from.

    Raises:
        ConstraintError: the grammar is malformed, or the tokenizer's tokens have no bytes of their own.
    """
    state = _State(LLMatcher(_compiled(tokenizer), source, log_level=0), _size(tokenizer))
    state.check(name)
    return state


class _State:
    def __init__(self, matcher: LLMatcher, size: int) -> None:
        self._matcher, self._size = matcher, size

    @property
    def accepts(self) -> bool:
        return self._matcher.is_accepting()

    def mask(self) -> npt.NDArray[np.bool_]:
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self.check("constraint")
        return np.unpackbits(bits, count=self._size, bitorder="little").view(np.bool_)

    def advance(self, token: int) -> bool:
        return token < self._size and self._matcher.try_consume_tokens([token]) == 1

    def fork(self) -> _State:
        return _State(self._matcher.deep_copy(), self._size)

    def rollback(self, count: int) -> None:
        if count:
            self._matcher.rollback(count)
            self.check("constraint")

    def check(self, name: str) -> None:
        if self._matcher.is_error():
            what, _, _ = self._matcher.get_error().partition("\n<state>")
            raise ConstraintError(f"{name}: got what llguidance refuses: {' '.join(what.split())}")


_TOKENIZERS: WeakKeyDictionary[Any, LLTokenizer] = WeakKeyDictionary()


def _compiled(tokenizer: Any) -> LLTokenizer:
    if tokenizer not in _TOKENIZERS:
        _TOKENIZERS[tokenizer] = LLTokenizer(TokenizerWrapper(_Vocabulary(tokenizer)))
    return _TOKENIZERS[tokenizer]


class _Vocabulary:
    """The bytes of all tokens; special ones have none, so that no grammar allows them. As the end of the
    sequence is the decoder's matter, it is an id behind all others here."""

    bos_token_id = None

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.eos_token_id = _size(tokenizer)
        self.special_token_ids = [self.eos_token_id]
        self.tokens = [*token_bytes(tokenizer, self.eos_token_id), b"<eos>"]

    def __call__(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids


def _size(tokenizer: Any) -> int:
    return len(tokenizer)


def _escaped(text: str) -> str:
    """As a regular expression that matches it alone: a blank needs no escape there, and has none."""
    return re.sub(r"[^\w\s]", lambda found: rf"\x{{{ord(found[0]):x}}}", text)
