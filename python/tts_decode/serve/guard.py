"""What stands before all routes: keys, names of hosts, the log, and answers to what should not happen."""

from __future__ import annotations

import ipaddress
import logging
import time
import traceback

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .config import ServerConfig
from .errors import APIError
from .keys import KeyCheck
from .metrics import Metrics
from .reply import error_response

_log = logging.getLogger(__name__)
_OPEN = ("/health",)  # paths that need no key
_UNKNOWN = "other"  # in counters, for every path that is not a route: clients do not make labels


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
            if refusal is not None:
                await error_response(refusal)(scope, receive, noting)
            else:
                await self._app(scope, receive, noting)
        except Exception:
            _log.error("%s failed:\n%s", scope["method"], traceback.format_exc())
            if not status:
                error = APIError(500, "the server failed; its log says more", None, "internal_error")
                await error_response(error)(scope, receive, noting)
        finally:
            known = path if path in self._paths else _UNKNOWN
            self._metrics.answered(known, status)
            client = (scope.get("client") or ("-",))[0]
            seconds = time.monotonic() - began
            _log.info("%s %s %s %d %.0f ms", client, scope["method"][:16], known, status, seconds * 1e3)

    def _refusal(self, scope: Scope) -> APIError | None:
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        if self._local and not is_local(headers.get(b"host", "")):
            message = "Host: without API keys the server answers to localhost only"
            return APIError(403, message, None, "host_not_allowed")
        if not self._key.asks or scope["path"] in _OPEN or self._key(headers.get(b"authorization", "")):
            return None
        return APIError(
            401, "Authorization: expected a bearer token that is an API key", None, "invalid_api_key"
        )


def is_local(host: str) -> bool:
    """Whether a Host header names this machine by itself."""
    ported = host.count(":") == 1 or "]:" in host
    name = host.rpartition(":")[0] if ported else host
    name = name.strip("[]").lower().rstrip(".")
    try:
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
