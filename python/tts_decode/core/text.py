"""Text of token runs, and stop strings found while tokens arrive."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .detokenizer import text_stream


def continuation(tokenizer: Any, tokens: Sequence[int], start: int, *, special: bool = False) -> str:
    """Text that `tokens[start:]` add after `tokens[:start]`: the characters that end in them.

    The texts of the pieces of a sequence join up to the text of the whole, wherever it is cut. An incomplete
    character at the end is left out; the text of the tokens that complete it begins with it. Where what
    follows does not complete it, U+FFFD stands there.

    Args:
        special: whether special tokens have their text, or none.
    """
    return text_stream(tokenizer, tokens[:start], special=special).add(tokens[start:])


class StopFinder:
    """Looks for stop strings in the text of one step, token by token; special tokens have their text."""

    def __init__(self, tokenizer: Any, stop: Sequence[str], context: Sequence[int]) -> None:
        """`context`: the tokens before the step."""
        self._stream = text_stream(tokenizer, context, special=True)
        self._stop = stop
        self._keep = max(len(text) for text in stop) - 1  # characters that a later token may complete
        self._tail = ""

    def push(self, token: int) -> bool:
        """Adds a token; True when a stop string is complete."""
        self._tail += self._stream.add((token,))
        if any(stop in self._tail for stop in self._stop):
            return True
        self._tail = self._tail[max(0, len(self._tail) - self._keep) :]
        return False
