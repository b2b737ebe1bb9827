"""Text of token runs, and stop strings found while tokens arrive.

Tokens do not decode one by one: a character may need several byte-level tokens, and SentencePiece drops the
space of a first token. Both helpers decode a run together with a few tokens before it and subtract what those
give alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_CONTEXT = 8  # tokens before a run that are decoded with it
_INCOMPLETE = "\ufffd"  # what a byte-level decoder gives for an unfinished character


def continuation(tokenizer: Any, tokens: Sequence[int], start: int) -> str:
    """Text that `tokens[start:]` add after `tokens[:start]`, without special tokens."""
    before = written(tokens[max(0, start - _CONTEXT) : start])
    prefix = tokenizer.decode(before, skip_special_tokens=True)
    text: str = tokenizer.decode(before + written(tokens[start:]), skip_special_tokens=True)
    return text[len(prefix.rstrip(_INCOMPLETE)) :]


def written(tokens: Sequence[int]) -> list[int]:
    """The tokens that have a text: embeddings, of id -1, are left out."""
    return [token for token in tokens if token >= 0]


class StopFinder:
    """Looks for stop strings in the text of one step, token by token.

    Keeps a short window of tokens and of text, so a token costs two decodes of a few tokens.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str], context: Sequence[int]) -> None:
        """`context`: the tokens before the step (only the last few are used)."""
        self._tokenizer = tokenizer
        self._stop = stop
        self._keep = max(len(text) for text in stop) - 1  # characters that a later token may complete
        self._window = written(context[-_CONTEXT:])
        self._read = len(self._window)  # tokens of the window whose text was taken already
        self._tail = ""

    def push(self, token: int) -> bool:
        """Adds a token; True when a stop string is complete."""
        self._window.append(token)
        old = self._tokenizer.decode(self._window[: self._read])
        text = self._tokenizer.decode(self._window)
        if text.endswith(_INCOMPLETE):
            return False
        self._tail += text[len(old.rstrip(_INCOMPLETE)) :]
        if any(stop in self._tail for stop in self._stop):
            return True
        self._tail = self._tail[max(0, len(self._tail) - self._keep) :]
        self._window = self._window[max(0, len(self._window) - _CONTEXT) :]
        self._read = len(self._window)
        return False
