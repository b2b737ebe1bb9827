"""Running coroutines side by side: failures and cancellation."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Coroutine, Iterable, Sequence
from typing import Any


def refuse_running_loop(name: str, coroutines: Sequence[Coroutine[Any, Any, Any]]) -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    for coroutine in coroutines:
        coroutine.close()
    raise RuntimeError(
        f"TreeDecoder.{name} was called where an event loop runs already: await the coroutine instead"
    )


async def gather(*awaitables: Awaitable[Any] | Iterable[Awaitable[Any]]) -> list[Any]:
    """Waits for all and returns their results in order; takes awaitables or one iterable of them.

    Like `asyncio.gather`, but when one fails or the caller is cancelled the rest are cancelled and have ended
    before the error goes on.
    """
    if len(awaitables) == 1 and not isinstance(awaitables[0], Awaitable):
        awaitables = tuple(awaitables[0])
    tasks = [asyncio.ensure_future(awaitable) for awaitable in awaitables]  # type: ignore[arg-type]
    try:
        return list(await asyncio.gather(*tasks))
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
