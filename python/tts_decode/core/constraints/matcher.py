"""llguidance's states: a grammar compiled for a tokenizer, and a text's position in it."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from llguidance import LLMatcher
from llguidance.gbnf_to_lark import any_to_lark

from ...errors import ConstraintError


def json_grammar(schema: str, whitespace: bool) -> str:
    return LLMatcher.grammar_from_json_schema(schema, overrides={"whitespace_flexible": whitespace})


def regex_grammar(pattern: str) -> str:
    return LLMatcher.grammar_from_regex(pattern)


def context_free_grammar(text: str) -> str:
    return LLMatcher.grammar_from_lark(any_to_lark(text))


def choice_grammar(options: Sequence[str]) -> str:
    return regex_grammar("|".join(map(_escaped, options)))


class MatcherState:
    """A matcher of llguidance that is replaced after an error, when it is of no more use.

    first: a matcher that stays before the first token. Copying it shares its grammar and costs microseconds.
    size: of the vocabulary.
    """

    def __init__(self, first: LLMatcher, size: int) -> None:
        self._first, self._size = first, size
        self._tokens: list[int] = []
        self._matcher = first.deep_copy()
        self._mask: npt.NDArray[np.bool_] | None = None  # computed for this position; never written to

    @property
    def accepts(self) -> bool:
        return self._matcher.is_accepting()

    def mask(self) -> npt.NDArray[np.bool_]:
        if self._mask is None:
            bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
            if self._matcher.is_error():
                self._recover()
                self._mask = np.zeros(self._size, np.bool_)
            else:
                self._mask = np.unpackbits(bits, count=self._size, bitorder="little").view(np.bool_)
            self._mask.flags.writeable = False
        return self._mask

    def advance(self, token: int) -> bool:
        if token >= self._size:
            return False
        fits = self._matcher.try_consume_tokens([token]) == 1
        if self._matcher.is_error():
            self._recover()
            return False
        if fits:
            self._tokens.append(token)
            self._mask = None
        return fits

    def fork(self) -> MatcherState:
        other = MatcherState.__new__(MatcherState)
        other._first, other._size = self._first, self._size
        other._tokens, other._mask = list(self._tokens), self._mask
        other._matcher = self._matcher.deep_copy()
        return other

    def rollback(self, count: int) -> None:
        if count:
            del self._tokens[len(self._tokens) - count :]
            self._mask = None
            self._matcher.rollback(count)
            if self._matcher.is_error():
                self._matcher = self._replayed()

    def _recover(self) -> None:
        """Recovers from an error after its tokens: a dead end of the grammar, or an exceeded limit."""
        error = matcher_error(self._matcher)
        self._matcher = self._replayed()
        if "NoExtension" not in error:
            raise ConstraintError(f"constraint: llguidance gave up after {len(self._tokens)} tokens: {error}")

    def _replayed(self) -> LLMatcher:
        """Returns another matcher at the same position."""
        matcher = self._first.deep_copy()
        matcher.try_consume_tokens(self._tokens)
        return matcher


def matcher_error(matcher: LLMatcher) -> str:
    """Returns the error in one line, without the state of the parser."""
    what, _, _ = matcher.get_error().partition("\n<state>")
    return f"{' '.join(what.split()):.300}"


def _escaped(text: str) -> str:
    """Returns a regular expression that matches the text alone. Spaces need no escape and get none."""
    return re.sub(r"[^\w\s]", lambda found: rf"\x{{{ord(found[0]):x}}}", text)
