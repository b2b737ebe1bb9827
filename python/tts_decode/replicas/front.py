"""The application in front of the replicas: passes each request to one, and answers if that one dies."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from ..cluster.identity import Identity
from ..serve.bodies import Bodies
from ..serve.config import Limits
from ..serve.errors import APIError, error_response, unavailable
from ..serve.guard import client_of, has_key
from ..serve.keys import KeyCheck
from ..serve.metrics import CONTENT_TYPE
from ..serve.presence import DisconnectedError, disconnected
from ..serve.searching import PATH
from .balance import Balance
from .beginnings import beginning_of
from .exposition import merged
from .members import Member, Replica
from .relay import Relay

_PROMPTED = ("/v1/completions", "/v1/chat/completions")
_LOOKS = ("GET", "HEAD")
_LONG = 1 << 15  # bytes; larger bodies are read outside the event loop
_LOOK_SECONDS = 0.02  # between checks of a condition
_CANCEL_SECONDS = 10.0  # for cancelled requests to be answered


class Front:
    """An ASGI application without lifespan.

    Args:
        keys: API keys. A request's body is read only if it carries one of them.
        limits: those of the replicas' servers; bodies are already read within them here.

    Attributes:
        members: the replicas, read-only.
    """

    def __init__(self, replicas: Sequence[Replica], keys: Sequence[str], limits: Limits) -> None:
        self.members = [Member(number, replica) for number, replica in enumerate(replicas)]
        self._key, self._bodies = KeyCheck(keys), Bodies(limits)
        self._balance = Balance(len(replicas), limits.retained)
        self._watches: list[asyncio.Task[None]] = []
        self._running = 0
        self._closed = False

    def open(self) -> None:
        """Starts watching the replicas, on the loop that runs the application."""
        self._watches = [
            asyncio.ensure_future(each.watch(self._refusal, self._balance.forget)) for each in self.members
        ]

    async def complete(self) -> str | None:
        """Returns None when all replicas serve, or why one of them must not."""
        while not all(member.serves for member in self.members):
            for member in self.members:
                if member.refused is not None:
                    return member.refused
            await asyncio.sleep(_LOOK_SECONDS)
        return None

    async def close(self, grace: float) -> None:
        """Refuses new requests, and cancels those that have not ended after `grace` seconds."""
        self._closed = True
        if not await self._idle(grace):
            closing = [member.close() for member in self.members]
            await asyncio.gather(*closing, return_exceptions=True)
            await self._idle(_CANCEL_SECONDS)
        for watch in self._watches:
            watch.cancel()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._running += 1
        try:
            if self._closed:
                raise unavailable("the server is shutting down")
            await self._answer(scope, receive, send)
        except APIError as error:
            await error_response(error)(scope, receive, send)
        except DisconnectedError:
            pass  # nobody is left to answer
        finally:
            self._running -= 1

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        path, looks = scope["path"], scope["method"] in _LOOKS
        if looks and path == "/health":
            await self._health()(scope, receive, send)
        elif looks and path == "/metrics":
            await (await self._metrics(scope))(scope, receive, send)
        elif looks and path.startswith(PATH):
            await (await self._tree(scope))(scope, receive, send)
        else:
            body = await self._body(scope, receive)
            beginning = await _read(body)
            with self._balance.chosen(beginning, [member.number for member in self._serving()]) as number:
                await self._pass_on(self.members[number], scope, body, receive, send)

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        """Returns the body of a request if a replica reads it, else b""."""
        if scope["method"] != "POST" or scope["path"] not in _PROMPTED or not has_key(scope, self._key):
            return b""
        async with self._bodies.received(Request(scope, receive), client_of(scope, self._key)) as body:
            return body

    async def _pass_on(self, member: Member, scope: Scope, body: bytes, receive: Receive, send: Send) -> None:
        """Sends the replica's answer. If the replica dies first, an error answers or ends the stream."""
        relay = Relay(send)
        left = asyncio.ensure_future(disconnected(receive))
        try:
            answered = await member.carry(scope, body, relay.take, left)
            if not answered and not left.done():
                await relay.fail(_lost(), scope, receive)
        finally:
            left.cancel()

    def _serving(self) -> list[Member]:
        """Returns the members that serve, at least one. Raises APIError, 503, if none does."""
        found = [member for member in self.members if member.serves]
        if not found:
            raise unavailable("no replica is up; try again")
        return found

    async def _idle(self, seconds: float) -> bool:
        """Waits up to `seconds` for all requests to end; returns whether they have."""
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while self._running and loop.time() < end:
            await asyncio.sleep(_LOOK_SECONDS)
        return not self._running

    def _refusal(self, member: Member, identity: Identity) -> str | None:
        """Returns how a replica differs from one that serves; None if it may serve beside it."""
        for other in self.members:
            if other.serves and other.identity is not None:
                names = f"replica {member.number}", f"replica {other.number}"
                return identity.unlike(names[0], other.identity, names[1])
        return None

    # -- requests to all replicas

    def _health(self) -> Response:
        serving = self._serving()
        return JSONResponse({"status": "ok", "replicas": len(self.members), "serving": len(serving)})

    async def _metrics(self, scope: Scope) -> Response:
        """Returns the metrics of all replicas, or the refusal of one of them."""
        serving = self._serving()
        answers = await asyncio.gather(*(member.whole(scope) for member in serving))
        texts = {}
        for member, answer in zip(serving, answers, strict=True):
            if answer is not None and answer.status_code != 200:
                return answer
            if answer is not None:
                texts[str(member.number)] = bytes(answer.body).decode()
        return Response(merged(texts), media_type=CONTENT_TYPE)

    async def _tree(self, scope: Scope) -> Response:
        """Returns the answer of the replica that holds the tree, or the last refusal if none does."""
        found: Response | None = None
        for member in self._serving():
            found = await member.whole(scope) or found
            if found is not None and found.status_code != 404:
                return found
        if found is None:
            raise _lost()
        return found


def _lost() -> APIError:
    return unavailable("the replica that had this request died; send it again")


async def _read(body: bytes) -> str:
    return beginning_of(body) if len(body) < _LONG else await asyncio.to_thread(beginning_of, body)
