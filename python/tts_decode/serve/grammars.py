"""Grammars of answers, compiled beside the engine's thread and within a time."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from ..core.constraints.grammars import JSONSchema
from ..core.constraints.protocol import Constraint
from ..extras import installed
from .errors import invalid

_SECONDS = 5.0  # that a grammar may take
# Two, so that one that takes its time holds up no other, and no more run than that.
_WORKERS = ThreadPoolExecutor(2, thread_name_prefix="tts-grammars")


async def compile_in_time(constraint: Constraint, tokenizer: Any) -> None:
    """Compiles a constraint, which is kept for all branches with an equal one.

    Raises APIError, 400, where it takes too long; ConstraintError where it is malformed.
    """
    start = asyncio.get_running_loop().run_in_executor(_WORKERS, constraint.start, tokenizer)
    try:
        await asyncio.wait_for(start, _SECONDS)
    except asyncio.TimeoutError:
        raise invalid("response_format", f"its grammar is not compiled within {_SECONDS:g} s") from None


async def warm(tokenizer: Any) -> None:
    """Prepares the vocabulary, which takes its time once; for the thread that uses the tokenizer."""
    if installed("llguidance"):
        with suppress(TypeError):  # its tokens have no bytes of their own: a grammar's error says so
            JSONSchema({}).start(tokenizer)
