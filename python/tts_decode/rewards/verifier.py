"""Scores from outside the model: a test, a checker, a known answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from ..core.running import gather, in_thread

if TYPE_CHECKING:
    from ..core.interfaces import Branch
    from .scorer import Scorer


def verifier(verify: Callable[[str], float], *, threaded: bool = False) -> Scorer:
    """Scorer: `verify(text)` of each branch's generated text.

    Made for finished text (`best_of_n`); a step-level search also passes it the text so far.

    Args:
        threaded: call it in threads, one per branch, so that a verifier that waits (for a compiler, a server)
            delays neither its neighbours nor the branches that are still decoding; it must then be safe to
            call from several threads at once. Otherwise it is called on the event loop, which is best if it
            takes microseconds. A search that ends or is cancelled does not wait for threads, but cannot stop
            them either.
    """

    async def verifier(branches: Sequence[Branch]) -> list[float]:
        texts = [branch.text for branch in branches]
        if threaded:
            return await gather(in_thread(partial(verify, text)) for text in texts)
        return [verify(text) for text in texts]

    return verifier
