"""The states of llguidance: a grammar, compiled for a tokenizer, and a text's place in it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper
from llguidance.gbnf_to_lark import any_to_lark

from ...errors import ConstraintError
from ..detokenizer import token_bytes
from .protocol import ConstraintState


def start(name: str, source: Callable[[], str], tokenizer: Any) -> ConstraintState:
    """Before the first token of a text.

    Args:
        name: of what the grammar comes from.
        source: makes it as llguidance writes it, by one of the functions below.

    Raises:
        ConstraintError: the grammar is malformed, or no text matches it.
        TypeError: the tokenizer's tokens have no bytes of their own.
    """
    vocabulary = _compiled(tokenizer)
    try:
        matcher = LLMatcher(vocabulary, source(), log_level=0)
    except Exception as cause:  # plain ones too, for a grammar without a root
        raise ConstraintError(f"{name}: got what llguidance refuses: {cause!s:.300}") from cause
    if matcher.is_error():
        raise ConstraintError(f"{name}: got what llguidance refuses: {_error(matcher)}")
    state = _State(matcher, len(tokenizer))
    if not (state.mask().any() or state.accepts):
        raise ConstraintError(f"{name}: got what no text matches")
    return state


def json_grammar(schema: str, whitespace: bool) -> str:
    return LLMatcher.grammar_from_json_schema(schema, overrides={"whitespace_flexible": whitespace})


def regex_grammar(pattern: str) -> str:
    return LLMatcher.grammar_from_regex(pattern)


def context_free_grammar(text: str) -> str:
    return LLMatcher.grammar_from_lark(any_to_lark(text))


def choice_grammar(options: Sequence[str]) -> str:
    return regex_grammar("|".join(map(_escaped, options)))


class _State:
    """After an error a matcher of llguidance is of no use any more, so another takes its place then.

    first: a matcher before the first token, which stays there.
    """

    def __init__(self, first: LLMatcher, size: int) -> None:
        self._first, self._size = first, size
        self._tokens: list[int] = []
        self._matcher = first.deep_copy()
        self._dead = False  # whether nothing may come next, as was seen

    @property
    def accepts(self) -> bool:
        return self._matcher.is_accepting()

    def mask(self) -> npt.NDArray[np.bool_]:
        if not self._dead:
            bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
            if not self._matcher.is_error():
                return np.unpackbits(bits, count=self._size, bitorder="little").view(np.bool_)
            self._recover()
        return np.zeros(self._size, np.bool_)

    def advance(self, token: int) -> bool:
        fits = token < self._size and self._matcher.try_consume_tokens([token]) == 1
        if fits:
            self._tokens.append(token)
        return fits

    def fork(self) -> _State:
        other = _State(self._first, self._size)
        other._matcher = self._matcher.deep_copy()
        other._tokens, other._dead = list(self._tokens), self._dead
        return other

    def rollback(self, count: int) -> None:
        if count:
            self._matcher.rollback(count)
            del self._tokens[len(self._tokens) - count :]
            self._dead = False

    def _recover(self) -> None:
        """From an error, which is a dead end of the grammar or a limit that was exceeded."""
        error = _error(self._matcher)
        self._matcher = self._first.deep_copy()
        self._matcher.try_consume_tokens(self._tokens)
        self._dead = "NoExtension" in error
        if not self._dead:
            raise ConstraintError(f"constraint: llguidance gave up after {len(self._tokens)} tokens: {error}")


def _error(matcher: LLMatcher) -> str:
    """In a line, without the state of the parser."""
    what, _, _ = matcher.get_error().partition("\n<state>")
    return f"{' '.join(what.split()):.300}"


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
        self.eos_token_id = len(tokenizer)
        self.special_token_ids = [self.eos_token_id]
        self.tokens = [*token_bytes(tokenizer, self.eos_token_id), b"<eos>"]

    def __call__(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids


def _escaped(text: str) -> str:
    """As a regular expression that matches it alone: a blank needs no escape there, and has none."""
    return re.sub(r"[^\w\s]", lambda found: rf"\x{{{ord(found[0]):x}}}", text)
