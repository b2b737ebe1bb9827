"""What penalties ask of a text that grows: which tokens stand in it, and how often."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt


class TokenCounts:
    """The distinct tokens of a text with their counts, in arrays that a token changes in one place.

    Args:
        tokens: the text so far; -1, which stands for an embedding, does not count.
    """

    def __init__(self, tokens: Iterable[int]) -> None:
        counted = Counter(tokens)
        counted.pop(-1, None)
        self._places = {token: place for place, token in enumerate(counted)}
        size = 2 * len(counted) + 16
        self._ids, self._counts = np.zeros(size, np.int64), np.zeros(size, np.int64)
        self._ids[: len(counted)] = list(counted)
        self._counts[: len(counted)] = list(counted.values())

    @property
    def ids(self) -> npt.NDArray[np.int64]:
        """int64 [distinct], in the order in which they came; a view."""
        return self._ids[: len(self._places)]

    @property
    def counts(self) -> npt.NDArray[np.int64]:
        """int64 [distinct], of `ids`; a view."""
        return self._counts[: len(self._places)]

    def add(self, token: int) -> None:
        place = self._places.setdefault(token, len(self._places))
        if place == len(self._ids):
            self._ids = np.concatenate([self._ids, np.zeros_like(self._ids)])
            self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
        self._ids[place] = token
        self._counts[place] += 1
