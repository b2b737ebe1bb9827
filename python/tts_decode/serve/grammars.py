"""Grammars of answers, compiled beside the engine's thread: once for a job, within a time."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from ..core.constraints.grammars import JSONSchema
from ..core.constraints.protocol import Constraint, ConstraintState
from ..extras import installed
from .errors import invalid

_SECONDS = 5.0  # that a grammar may take
# Two, so that one that takes its time holds up no other.
_WORKERS = ThreadPoolExecutor(2, thread_name_prefix="tts-grammars")


class Compiled:
    """A constraint whose first state is there: every branch gets a fork of it."""

    def __init__(self, state: ConstraintState) -> None:
        self._state = state

    def start(self, tokenizer: Any) -> ConstraintState:
        """Of the tokenizer that it was compiled for."""
        return self._state.fork()


async def compiled(constraint: Constraint, tokenizer: Any) -> Constraint:
    """Raises APIError, 400, where it takes too long; ConstraintError where it is malformed."""
    start = asyncio.get_running_loop().run_in_executor(_WORKERS, constraint.start, tokenizer)
    try:
        return Compiled(await asyncio.wait_for(start, _SECONDS))
    except asyncio.TimeoutError:
        raise invalid("response_format", f"its grammar is not compiled within {_SECONDS:g} s") from None


async def warm(tokenizer: Any) -> None:
    """Prepares the vocabulary, which takes its time once; for the thread that uses the tokenizer."""
    if installed("llguidance"):
        with suppress(
            TypeError
        ):  # its tokens have no bytes of their own, of which a grammar tells the client
            JSONSchema({}).start(tokenizer)
