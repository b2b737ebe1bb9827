"""Scores from outside the model: a test, a checker, a known answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tts_decode.branch import Branch
    from tts_decode.rewards.scorer import Scorer


def verifier(verify: Callable[[str], float]) -> Scorer:
    """Scorer: `verify(text)` of each branch's generated text.

    Made for finished text (`best_of_n`); a step-level search also hands it the text so far. It is called on
    the event loop, so a slow one should do its work elsewhere and be written as a scorer of its own.
    """

    async def verifier(branches: Sequence[Branch]) -> list[float]:
        return [verify(branch.text) for branch in branches]

    return verifier
