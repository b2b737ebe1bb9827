"""A replica as the front sees it: whether it serves, and how its death ends a request."""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any, Protocol

from starlette.responses import Response
from starlette.types import Message, Scope

from ..cluster.identity import Identity

_log = logging.getLogger(__name__)
_AGAIN_SECONDS = 0.2  # between attempts to reach a replica
# The part of a request's scope that can be sent to another process.
_PORTABLE = (
    *("type", "http_version", "method", "scheme", "path", "raw_path", "query_string", "headers"),
    *("client", "server"),
)


class Replica(Protocol):
    """A server with a decoder, in a process of its own that is restarted when it dies."""

    def presence(self) -> AsyncGenerator[Identity, None]:
        """Yields what it serves, once it does; ends or raises when the process has died."""

    def answer(self, scope: Scope, body: bytes) -> AsyncGenerator[Message, None]:
        """Yields what its application sends. Closing the generator means the client left."""

    async def close(self) -> None:
        """Cancels its requests; each is still answered."""


class Member:
    """One of the front's replicas.

    Attributes:
        number: its number among them. identity: of its latest process that served.
        refused: why its process does not serve, though it is there; None: it does, or there is none.
    """

    def __init__(self, number: int, replica: Replica) -> None:
        self.number, self._replica = number, replica
        self.identity: Identity | None = None
        self.refused: str | None = None
        self._death: asyncio.Future[None] | None = None  # of the process that serves; None: none does

    @property
    def serves(self) -> bool:
        return self._death is not None

    async def watch(
        self, refusal: Callable[[Member, Identity], str | None], died: Callable[[int], None]
    ) -> None:
        """Follows the replica through its restarts.

        refusal: returns why a process of this identity may not serve now, or None. It is asked again until
        the process may. died: called with the member's number at each death.
        """
        while True:
            try:
                async with aclosing(self._replica.presence()) as presence:
                    async for identity in presence:
                        if not self._accept(identity, refusal(self, identity)):
                            break
            except Exception as error:  # Ray's, which says how the process died
                _log.warning("replica %d is not there: %s", self.number, " ".join(str(error).split())[:300])
            if self._death is not None:
                self._death.set_result(None)
                self._death = None
                died(self.number)
            await asyncio.sleep(_AGAIN_SECONDS)

    def _accept(self, identity: Identity, refused: str | None) -> bool:
        """Lets the process serve unless it is refused, which is logged once; returns whether it serves."""
        if refused is not None and refused != self.refused:
            _log.error("%s", refused)
        self.refused = refused
        if refused is None:
            self.identity, self._death = identity, asyncio.get_running_loop().create_future()
        return refused is None

    async def carry(
        self, scope: Scope, body: bytes, take: Callable[[Message], Any], *ends: asyncio.Future[Any]
    ) -> bool:
        """Passes each message of the replica's answer to `take`, a coroutine function.

        Returns whether the answer is complete: not if the process dies or one of `ends` is done first.
        """
        if self._death is None:
            return False
        work = asyncio.ensure_future(self._answered(scope, body, take))
        try:
            await asyncio.wait((work, self._death, *ends), return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                return False
            if (error := work.exception()) is not None:
                _log.error("replica %d: %s", self.number, "".join(traceback.format_exception(error)))
            return error is None
        finally:
            work.cancel()

    async def whole(self, scope: Scope) -> Response | None:
        """Returns the answer to a request without a body, None if the process dies."""
        messages: list[Message] = []

        async def take(message: Message) -> None:
            messages.append(message)

        if not await self.carry(scope, b"", take):
            return None
        start, *parts = messages
        answer = Response(b"".join(part.get("body", b"") for part in parts), start["status"])
        answer.raw_headers = list(start["headers"])
        return answer

    async def close(self) -> None:
        if self.serves:
            await self._replica.close()

    async def _answered(self, scope: Scope, body: bytes, take: Callable[[Message], Any]) -> None:
        told = {name: scope[name] for name in _PORTABLE if name in scope}
        async with aclosing(self._replica.answer(told, body)) as answer:
            async for message in answer:
                await take(message)
