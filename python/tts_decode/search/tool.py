"""A caller's tool in a search: it runs what a model wrote."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

Tool = Callable[[str], str]
"""From code, or another call, to what it printed."""


async def output_of(tool: Tool, code: str) -> str:
    """What the tool says, or the text of an exception that it raises. It runs in a thread."""

    def call() -> str:
        try:
            return tool(code)
        except Exception as error:
            return f"{type(error).__name__}: {error}"

    return await asyncio.to_thread(call)
