"""Compiles grammars for a tokenizer's vocabulary and keeps the most recent ones."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary

from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from ...errors import ConstraintError
from ..detokenizer import token_bytes
from .matcher import MatcherState, matcher_error

KEPT = 32  # compiled grammars per tokenizer, about 0.1 to 10 MB each


class Compiler:
    """Compiles grammars for one vocabulary, each once, whichever threads ask for it.

    Attributes:
        size: of the vocabulary.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.size = len(tokenizer)
        self._vocabulary = LLTokenizer(TokenizerWrapper(_Vocabulary(tokenizer)))
        self._kept: OrderedDict[Hashable, Future[MatcherState]] = OrderedDict()  # most recently used last
        self._lock = Lock()

    def holds(self, key: Hashable) -> bool:
        """Whether `start` would neither compile nor wait. Asking counts as a use."""
        with self._lock:
            if key not in self._kept:
                return False
            self._kept.move_to_end(key)
            return self._kept[key].done()

    def start(self, key: Hashable, name: str, source: Callable[[], str]) -> MatcherState:
        """Returns the state before the first token of a text.

        Args:
            key: identifies the grammar.
            name: of the grammar's source.
            source: returns the grammar in llguidance's format.

        Raises:
            ConstraintError: the grammar is malformed, or no text matches it.
        """
        with self._lock:
            compiled = self._kept.get(key)
            own = compiled is None
            if compiled is None:
                compiled = self._kept[key] = Future()
                if len(self._kept) > KEPT:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(key)
        if own:
            try:
                compiled.set_result(self._compiled(name, source))
            except BaseException as error:
                with self._lock:
                    if self._kept.get(key) is compiled:
                        del self._kept[key]
                compiled.set_exception(error)
                raise
        return compiled.result().fork()

    def _compiled(self, name: str, source: Callable[[], str]) -> MatcherState:
        try:
            matcher = LLMatcher(self._vocabulary, source(), log_level=0)
        except Exception as cause:  # a plain Exception too, for a grammar without a root
            raise ConstraintError(f"{name}: got what llguidance refuses: {cause!s:.300}") from cause
        if matcher.is_error():
            raise ConstraintError(f"{name}: got what llguidance refuses: {matcher_error(matcher)}")
        state = MatcherState(matcher, self.size)
        if not (state.mask().any() or state.accepts):
            raise ConstraintError(f"{name}: got what no text matches")
        return state


_COMPILERS: WeakKeyDictionary[Any, Compiler] = WeakKeyDictionary()
_COMPILERS_LOCK = Lock()


def compiler_for(tokenizer: Any) -> Compiler:
    """Returns the tokenizer's compiler; a new one after tokens were added to the tokenizer.

    Raises:
        TypeError: the tokenizer's tokens do not map to bytes.
    """
    with _COMPILERS_LOCK:
        compiler = _COMPILERS.get(tokenizer)
        if compiler is None or compiler.size != len(tokenizer):
            compiler = _COMPILERS[tokenizer] = Compiler(tokenizer)
        return compiler


def is_compiled(tokenizer: Any, key: Hashable) -> bool:
    """Whether the tokenizer's compiler holds the grammar; see `Compiler.holds`."""
    compiler = _COMPILERS.get(tokenizer)
    return compiler is not None and compiler.size == len(tokenizer) and compiler.holds(key)


class _Vocabulary:
    """The bytes of all tokens, for llguidance.

    Special tokens have no bytes, so no grammar allows them. The decoder handles the end of the sequence, so
    here its id comes after all others. The vocabulary does not hold the tokenizer: the tokenizer's compiler
    would keep it alive.
    """

    bos_token_id = None

    def __init__(self, tokenizer: Any) -> None:
        self.eos_token_id = len(tokenizer)
        self.special_token_ids = [self.eos_token_id]
        self.tokens = [*token_bytes(tokenizer, self.eos_token_id), b"<eos>"]
        self._backend = tokenizer.backend_tokenizer

    def __call__(self, text: str) -> list[int]:
        ids: list[int] = self._backend.encode(text, add_special_tokens=False).ids
        return ids
