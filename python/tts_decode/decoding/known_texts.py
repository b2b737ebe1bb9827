"""Texts with known tokens, found by their prefixes."""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, eq=False)
class KnownText:
    """A text and its tokens.

    text: as a client sees it, special tokens included. tokens: all ids.
    begin: index of the first token whose end in the text is known. ends: of the tokens from there on,
    ascending.
    """

    text: str
    tokens: array[int]
    begin: int
    ends: array[int]

    @property
    def first(self) -> int:
        """Characters that a text has to share before any of its tokens are known."""
        return self.ends[0]

    def tokens_in(self, characters: int) -> int:
        """Returns how many tokens end in the first `characters` characters, which are at least `first`."""
        return self.begin + bisect_right(self.ends, characters)

    def end_of(self, count: int) -> int:
        """Returns the position in the text where the first `count` tokens end."""
        return self.ends[count - 1 - self.begin]


class TextIndex:
    """Known texts in alphabetical order: those that share most with a text are next to its place."""

    def __init__(self) -> None:
        self._texts: list[KnownText] = []

    def add(self, known: KnownText) -> None:
        self._texts.insert(self._place(known.text), known)

    def remove(self, known: KnownText) -> None:
        place = self._place(known.text)
        while self._texts[place] is not known:
            place += 1
        del self._texts[place]

    def best(self, text: str) -> tuple[KnownText | None, int]:
        """Returns the known text with the longest common prefix, and how many tokens that is."""
        place = self._place(text)
        sides = (
            self._nearest(text, range(place - 1, -1, -1)),
            self._nearest(text, range(place, len(self._texts))),
        )
        _, found = max(sides, key=lambda side: side[0])
        return (None, 0) if found is None else (found, found.tokens_in(common(found.text, text)))

    def _nearest(self, text: str, places: Iterable[int]) -> tuple[int, KnownText | None]:
        """Returns the first text that shares its own `first` characters, and how many it shares.

        Texts further away share no more, so one number rules out most of them.
        """
        limit: int | None = None
        for place in places:
            known = self._texts[place]
            if limit is not None and known.first > limit:
                continue
            limit = common(known.text, text)
            if known.first <= limit:
                return limit, known
            if not limit:
                break
        return -1, None

    def _place(self, text: str) -> int:
        return bisect_left(self._texts, text, key=lambda known: known.text)


def common(one: Sequence[object], other: Sequence[object]) -> int:
    """Returns the length of the common prefix of two texts, or of two lists."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
