"""Finds stop strings while tokens arrive."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .detokenizer import text_stream


class StopFinder:
    """Looks for stop strings in the text of one step, token by token; special tokens count as text."""

    def __init__(self, tokenizer: Any, stop: Sequence[str], context: Sequence[int]) -> None:
        """context: the tokens before the step."""
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
