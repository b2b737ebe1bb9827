"""A caller's own functions in a search: tools, retrievers, tests.

Their results come from outside, as scores do: a journal keeps them, and a resumed search does not call the
functions again for them. `SearchRun(tool_timeout=)` and the budget's seconds limit each call.
"""

from __future__ import annotations

import asyncio
import inspect
import os
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from tts_kernels.checks import a_type

from ..core.running import in_thread
from ..errors import ReturnedError
from .model_calls import SearchStoppedError

if TYPE_CHECKING:
    from .run import SearchRun

Tool = Callable[[str], "str | Awaitable[str]"]
"""Maps code, or another call, to its output."""

TextFunction = Callable[[str], "str | Awaitable[str | None] | None"]
"""Maps a query, or an answer, to a text about it; "" or None for nothing."""

Tests = Callable[[str], "Sequence[bool] | Awaitable[Sequence[bool]]"]
"""Maps a text to whether it passes each test; the tests are the same for every text."""

_AT_A_TIME = (os.cpu_count() or 1) + 4  # threads, as each may start a process
_slots_of: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = WeakKeyDictionary()


async def output_of(run: SearchRun, tool: Tool, code: str) -> str:
    """Returns the tool's output, or the text of an exception that it raises."""

    async def call() -> str:
        try:
            output = await _returned(run, "tool", tool, code)
        except SearchStoppedError as late:
            if run.over:
                raise
            return str(late)
        except Exception as error:
            return _text("tool", f"{type(error).__name__}: {error}")
        return _text("tool", output)

    return await run.outside("tool", code, call, lambda value: _text("tool", value))


async def text_for(run: SearchRun, name: str, function: TextFunction, query: str) -> str:
    """Returns the result of a text-to-text function, "" for None. name: of the option."""

    def read(value: object) -> str:
        return "" if value is None else _text(name, value)

    async def call() -> str:
        return read(await _returned(run, name, function, query))

    return await run.outside(name, query, call, read)


async def tests_passed(run: SearchRun, tests: Tests, text: str) -> list[bool]:
    """Returns which tests a text passes."""

    def read(value: Any) -> list[bool]:
        try:
            return [bool(passed) for passed in value]
        except TypeError:
            raise ReturnedError(
                f"run_tests: got {a_type(value)} of it, expected a list of true and false"
            ) from None

    async def call() -> list[bool]:
        return read(await _returned(run, "run_tests", tests, text))

    return await run.outside("run_tests", text, call, read)


async def _returned(run: SearchRun, name: str, function: Callable[[str], Any], asked: str) -> Any:
    """Returns the result of an async function, or of another one, which runs in a thread.

    Raises SearchStoppedError if it takes too long: the thread then continues alone.
    """
    if inspect.iscoroutinefunction(function):
        return await run.tool_in_time(name, function(asked))

    async def threaded() -> Any:
        result = await in_thread(partial(function, asked))
        return await result if isinstance(result, Awaitable) else result

    async with _slots():  # waiting for a slot does not count as the call's time
        return await run.tool_in_time(name, threaded())


def _slots() -> asyncio.Semaphore:
    """Returns the running event loop's slots for calls that run in threads."""
    loop = asyncio.get_running_loop()
    if loop not in _slots_of:
        _slots_of[loop] = asyncio.Semaphore(_AT_A_TIME)
    return _slots_of[loop]


def _text(name: str, value: object) -> str:
    """Makes the text valid UTF-8: half a surrogate pair, as from a program's broken output, becomes "?"."""
    if not isinstance(value, str):
        raise ReturnedError(f"{name}: got {a_type(value)} of it, expected a text")
    return value.encode("utf-8", "replace").decode("utf-8")
