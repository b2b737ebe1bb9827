"""Scores from outside the model: a test, a checker, a known answer."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING

from ..core.running import gather

if TYPE_CHECKING:
    from ..core.interfaces import Branch
    from .scorer import Scorer


def verifier(verify: Callable[[str], float], *, threaded: bool = False) -> Scorer:
    """Scorer: `verify(text)` of each branch's generated text.

    Made for finished text (`best_of_n`); a step-level search also hands it the text so far.

    threaded: call it in threads, one a branch, so that one that waits (a compiler, a server) holds up neither
        its neighbours nor the branches that are still decoding; it must then be safe to call from several
        threads at once. Otherwise it is called on the event loop, which is best for what takes microseconds.
        A search that ends or is cancelled does not wait for threads, but cannot stop them either.
    """

    async def verifier(branches: Sequence[Branch]) -> list[float]:
        texts = [branch.text for branch in branches]
        if threaded:
            return await gather(_in_thread(verify, text) for text in texts)
        return [verify(text) for text in texts]

    return verifier


async def _in_thread(verify: Callable[[str], float], text: str) -> float:
    """`verify(text)` in a daemon thread: those of an executor hold up the end of event loop and process."""
    outcome: Future[float] = Future()
    outcome.set_running_or_notify_cancel()

    def work() -> None:
        try:
            outcome.set_result(verify(text))
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=work, name="verifier", daemon=True).start()
    return await asyncio.wrap_future(outcome)
