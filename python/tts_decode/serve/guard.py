"""Runs before all routes: keys, host names, the log, and answers to unexpected failures."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .config import ServerConfig
from .errors import APIError, as_api_error, error_response
from .keys import KeyCheck, owner_of
from .metrics import Metrics

_log = logging.getLogger(__name__)
CLIENT = "tts_decode_client"  # key of a request's state: the client it counts for
HEAD_BYTES = 1 << 16
_OPEN = ("/health",)  # paths that need no key
_UNKNOWN = "other"  # in counters, for every path that is not a route: clients must not create labels


class Guard:
    """An ASGI middleware.

    Args:
        paths: of the routes.
    """

    def __init__(self, app: ASGIApp, config: ServerConfig, metrics: Metrics, paths: frozenset[str]) -> None:
        self._app = app
        self._key = KeyCheck(config.keys)
        self._local = config.loopback and not config.keys
        self._metrics, self._paths = metrics, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status, began = 0, time.monotonic()

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        path = scope["path"]
        try:
            refusal = self._refusal(scope)
            scope["state"] = scope.get("state", {}) | {CLIENT: client_of(scope, self._key)}
            if refusal is not None:
                await error_response(refusal)(scope, receive, noting)
            else:
                await self._app(scope, receive, noting)
        except (
            Exception,
            asyncio.CancelledError,
        ) as error:  # only a server's shutdown cancels requests
            answer = error_response(as_api_error(error))
            if not status:
                await answer(scope, receive, noting)
        finally:
            known = path if path in self._paths else _UNKNOWN
            self._metrics.answered(known, status)
            client = (scope.get("client") or ("-",))[0]
            seconds = time.monotonic() - began
            _log.info("%s %s %s %d %.0f ms", client, scope["method"][:16], known, status, seconds * 1e3)

    def _refusal(self, scope: Scope) -> APIError | None:
        if sum(len(name) + len(value) for name, value in scope["headers"]) > HEAD_BYTES:
            return APIError(431, f"the headers: expected at most {HEAD_BYTES} bytes", None, "head_too_large")
        if self._local and not is_local(_header(scope, b"host")):
            message = "Host: without API keys the server answers to localhost only"
            return APIError(403, message, None, "host_not_allowed")
        if {b"content-length", b"transfer-encoding"} <= {name for name, _ in scope["headers"]}:
            message = "Content-Length: got one beside Transfer-Encoding, expected one of them"
            return APIError(400, message, None, "invalid_http", {"Connection": "close"})
        if scope["path"] in _OPEN or has_key(scope, self._key):
            return None
        return APIError(
            401, "Authorization: expected a bearer token that is an API key", None, "invalid_api_key"
        )


def has_key(scope: Scope, key: KeyCheck) -> bool:
    """Whether a request carries a key, if one is asked for."""
    return not key.asks or key(_header(scope, b"authorization"))


def client_of(scope: Scope, key: KeyCheck) -> str:
    """Whom a request counts for: its key's digest, or without keys its address."""
    if key.asks:
        return owner_of(_header(scope, b"authorization"))
    return str((scope.get("client") or ("-",))[0])


def _header(scope: Scope, name: bytes) -> str:
    """Returns the value of a header: the last of several, "" if missing."""
    values = [value for given, value in scope["headers"] if given == name]
    return values[-1].decode("latin-1") if values else ""


def is_local(host: str) -> bool:
    """Whether a Host header names this machine itself."""
    ported = host.count(":") == 1 or "]:" in host
    name = host.rpartition(":")[0] if ported else host
    name = name.strip("[]").lower().rstrip(".")
    try:
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
