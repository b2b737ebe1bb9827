"""Groups answers that mean the same."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from functools import cache

from ..errors import MissingExtraError
from .equality import comparable, needs_mathematics, same_answer
from .notation import normalised, spelling

_SECONDS = 20.0  # per grouping; after that, mathematics is compared by its spelling alone
_logger = logging.getLogger("tts_decode")


def group(answers: Sequence[str | None]) -> list[int | None]:
    """Returns, for each answer, the index of the first that means the same (`same_answer`).

    None, which abstains, gives None. An answer joins the first group whose first answer means the same, or
    which has one with its spelling: if A is B and B is C but A is not C, the order decides. Without
    math-verify, and if a grouping takes longer than 20 seconds, mathematics is compared by its notation only;
    a warning of the logger `tts_decode` says so.
    """
    groups = _Groups()
    return [None if answer is None else groups.first(answer, index) for index, answer in enumerate(answers)]


class _Groups:
    def __init__(self) -> None:
        self._spelled: dict[str, int] = {}  # text or spelling -> index of its group's first answer
        self._leaders: list[tuple[int, str]] = []  # the first of each group: index and answer
        self._deadline = time.monotonic() + _SECONDS

    def first(self, answer: str, index: int) -> int:
        """Returns the index of the first answer of the group that this one belongs to."""
        if answer not in self._spelled:
            written = normalised(answer) if comparable(answer) else ""
            spelled = spelling(written) or answer
            if spelled not in self._spelled:
                self._spelled[spelled] = self._led_by(answer, index)
            self._spelled[answer] = self._spelled[spelled]
        return self._spelled[answer]

    def _led_by(self, answer: str, index: int) -> int:
        for at, leader in self._leaders:
            if self._same(answer, leader):
                return at
        self._leaders.append((index, answer))
        return index

    def _same(self, answer: str, leader: str) -> bool:
        if time.monotonic() > self._deadline and any(map(needs_mathematics, (answer, leader))):
            warn_once(f"to compare those of one vote took longer than {_SECONDS:g} s")
            return False
        try:
            return same_answer(answer, leader)
        except MissingExtraError as missing:
            warn_once(str(missing))
            return False


@cache
def warn_once(reason: str) -> None:
    _logger.warning("answers are grouped by their notation only: %s", reason)
