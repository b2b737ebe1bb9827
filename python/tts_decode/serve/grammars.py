"""Compiles the grammars of answers outside the engine's thread and within a time limit."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from typing import Any

from ..core.constraints.grammars import Compiled, JSONSchema
from ..core.constraints.protocol import Constraint
from ..extras import installed
from .errors import invalid, unavailable

_SECONDS = 5.0  # limit for compiling a grammar, and for waiting for others
_AT_A_TIME = 2  # a slow one delays no other, and few cores are taken


class Grammars:
    """Compiles the constraints of requests for one tokenizer. For the engine's loop.

    Threads cannot be stopped: one that does not end keeps its place, but does not keep the process from
    exiting.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._running: dict[Constraint, asyncio.Future[BaseException | None]] = {}  # why each failed

    async def warm(self) -> None:
        """Prepares the vocabulary, which takes time once."""
        if installed("llguidance"):
            with suppress(TypeError):  # its tokens do not map to bytes: a grammar's error says so
                JSONSchema({}).start(self._tokenizer)

    async def compiled(self, constraint: Constraint | None) -> None:
        """Compiles a constraint, which is kept for all branches with an equal one.

        Raises APIError: 400 if it takes too long, 503 if others occupy all threads; ConstraintError if it is
        malformed.
        """
        if not isinstance(constraint, Compiled) or constraint.is_compiled(self._tokenizer):
            return
        running = await self._begun(constraint)
        await asyncio.wait((running,), timeout=_SECONDS)
        if not running.done():
            raise invalid("response_format", f"its grammar is not compiled within {_SECONDS:g} s")
        if (error := running.result()) is not None:
            raise error

    async def _begun(self, constraint: Compiled) -> asyncio.Future[BaseException | None]:
        """Returns the compilation of a constraint, one for all requests that have it."""
        loop = asyncio.get_running_loop()
        end = loop.time() + _SECONDS
        while constraint not in self._running and len(self._running) >= _AT_A_TIME:
            left = end - loop.time()
            if left <= 0:
                raise unavailable("grammars of other requests are being compiled; try again")
            others = tuple(self._running.values())
            await asyncio.wait(others, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        if constraint not in self._running:
            self._running[constraint] = loop.create_future()
            arguments = constraint, loop
            threading.Thread(target=self._compile, args=arguments, name="tts-grammars", daemon=True).start()
        return self._running[constraint]

    def _compile(self, constraint: Compiled, loop: asyncio.AbstractEventLoop) -> None:
        """Compiles in its own thread."""
        error = None
        try:
            constraint.start(self._tokenizer)
        except BaseException as caught:
            error = caught
        with suppress(RuntimeError):  # the loop was closed meanwhile
            loop.call_soon_threadsafe(self._end, constraint, error)

    def _end(self, constraint: Constraint, error: BaseException | None) -> None:
        self._running.pop(constraint).set_result(error)
