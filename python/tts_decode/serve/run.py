"""Runs a server until a signal ends it: the socket, the log, and how it stops."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
import sys
from collections.abc import Sequence
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from ..completions.redaction import Redaction
from ..core.visible import visible
from ..decoding.decoder import TreeDecoder
from .app import create_app
from .config import ServerConfig

_CONNECTIONS = 1024  # at a time; more are answered 503
_HEADER_BYTES = 1 << 16
_LOGGERS = {"tts_decode": logging.INFO, "uvicorn.error": logging.WARNING}


def is_loopback(host: str) -> bool:
    """Whether an address is reached from this machine only."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there; port 0: one that is free. Raises OSError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=_CONNECTIONS)


def serve(decoder: TreeDecoder, config: ServerConfig, listener: socket.socket, *, grace: float) -> None:
    """Serves until SIGINT or SIGTERM. For the main thread.

    grace: seconds that requests under way get to end; then they are cancelled.
    """
    _log_to_stderr(config.keys)
    server = uvicorn.Server(http_config(decoder, config, grace=grace))
    server.run(sockets=[listener])


def http_config(decoder: TreeDecoder, config: ServerConfig, *, grace: float = 1.0) -> uvicorn.Config:
    """What uvicorn is to do."""
    return uvicorn.Config(
        create_app(decoder, config),
        http=_protocol(config.limits.idle_seconds),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        limit_concurrency=_CONNECTIONS,
        timeout_graceful_shutdown=max(1, round(grace)),
        h11_max_incomplete_event_size=_HEADER_BYTES,
    )


def _protocol(idle_seconds: float) -> type[asyncio.Protocol]:
    """HTTP that gives up a connection whose client does not send a head to its end, or does not read."""

    class ImpatientProtocol(H11Protocol):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._begun: float | None = self.loop.time()  # when a head was first waited for; None: none is
            self._unsent, self._moved = 0, self._begun  # bytes that the client has not read, and since when
            self._watch = self.loop.call_later(0.1 * idle_seconds, self._look)

        def data_received(self, data: bytes) -> None:
            if self._begun is None and (self.cycle is None or self.cycle.response_complete):
                self._begun = self.loop.time()  # of the next head: more bytes of it do not put it off
            super().data_received(data)
            if self.cycle is not None and not self.cycle.response_complete:
                self._begun = None

        def connection_lost(self, exc: Exception | None) -> None:
            self._watch.cancel()
            super().connection_lost(exc)

        def _look(self) -> None:
            now = self.loop.time()
            unsent = self.transport.get_write_buffer_size()
            if not unsent or unsent != self._unsent:
                self._unsent, self._moved = unsent, now
            if unsent and now - self._moved >= idle_seconds:
                self.transport.abort()  # close() would wait until the client has read it all
            elif self._begun is not None and now - self._begun >= idle_seconds:
                self.transport.close()
            else:
                self._watch = self.loop.call_later(0.1 * idle_seconds, self._look)

    return ImpatientProtocol


class LogFormatter(logging.Formatter):
    """Lines without keys, and without what a terminal obeys."""

    def __init__(self, secrets: Sequence[str]) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s")
        self._redact = Redaction(secrets)

    def format(self, record: logging.LogRecord) -> str:
        return visible(self._redact(super().format(record)))


def _log_to_stderr(secrets: Sequence[str]) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LogFormatter(secrets))
    for name, level in _LOGGERS.items():
        logger = logging.getLogger(name)
        logger.addHandler(handler)
        logger.setLevel(level)
        logger.propagate = False
