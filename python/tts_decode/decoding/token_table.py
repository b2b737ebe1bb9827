"""The distinct tokens of a growing text, with what changes the logit of each."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

# seen: whether the repetition penalty applies. count: how often frequency and presence penalty count it.
# bias, penalty: float32, added to its logit before and after the repetition penalty.
ENTRY = np.dtype(
    [
        ("token", np.int64),
        ("count", np.int64),
        ("bias", np.float32),
        ("penalty", np.float32),
        ("seen", np.bool_),
    ],
    align=True,
)


class TokenTable:
    """One entry per token, zero at first, in one array: an added token changes one entry.

    Args:
        tokens: the first ones; -1, which represents an embedding, has no entry.
    """

    def __init__(self, tokens: Iterable[int]) -> None:
        first = dict.fromkeys(tokens)
        first.pop(-1, None)
        self._places = {token: place for place, token in enumerate(first)}
        self._entries = np.zeros(2 * len(first) + 16, ENTRY)
        self._entries["token"][: len(first)] = list(first)

    @property
    def entries(self) -> npt.NDArray[Any]:
        """Returns ENTRY [distinct], in the order in which the tokens first came; a writable view."""
        return self._entries[: len(self._places)]

    def place(self, token: int) -> int:
        """Returns the index of a token's entry, which is created if missing."""
        place = self._places.setdefault(token, len(self._places))
        if place == len(self._entries):
            self._entries = np.concatenate([self._entries, np.zeros_like(self._entries)])
        self._entries["token"][place] = token
        return place
