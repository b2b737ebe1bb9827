"""Runs a server until a signal ends it: the socket, the log, and the shutdown."""

from __future__ import annotations

import ipaddress
import logging
import math
import socket
import sys
from collections.abc import Sequence

import uvicorn

from ..completions.redaction import Redaction
from ..core.visible import visible
from ..decoding.decoder import TreeDecoder
from .app import create_app
from .config import ServerConfig
from .connection import CONNECTIONS, impatient
from .guard import HEAD_BYTES

_LOGGERS = {"tts_decode": logging.INFO, "uvicorn.error": logging.WARNING}


def is_loopback(host: str) -> bool:
    """Whether an address is reachable from this machine only."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def listen(host: str, port: int) -> socket.socket:
    """Returns a socket that listens there; port 0: a free one. Raises OSError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=CONNECTIONS)


def serve(decoder: TreeDecoder, config: ServerConfig, listener: socket.socket, *, grace: float) -> None:
    """Serves until SIGINT or SIGTERM. For the main thread.

    grace: seconds that running requests get to end, or math.inf; then they are cancelled.
    """
    log_to_stderr(config.keys)
    server = uvicorn.Server(http_config(decoder, config, grace=grace))
    server.run(sockets=[listener])


def http_config(decoder: TreeDecoder, config: ServerConfig, *, grace: float = 1.0) -> uvicorn.Config:
    """Returns the configuration of uvicorn."""
    return uvicorn.Config(
        create_app(decoder, config),
        http=impatient(config.limits.idle_seconds),
        ws="none",
        loop="asyncio",  # not uvloop even if installed: a signal would not end the process with its exit code
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=None if math.isinf(grace) else grace,  # type: ignore[arg-type]  # a float
        h11_max_incomplete_event_size=HEAD_BYTES,
    )


class LogFormatter(logging.Formatter):
    """Formats log lines without keys, and without what a terminal obeys."""

    def __init__(self, secrets: Sequence[str]) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s")
        self._redact = Redaction(secrets)

    def format(self, record: logging.LogRecord) -> str:
        return visible(self._redact(super().format(record)))


def log_to_stderr(secrets: Sequence[str]) -> None:
    """The log of this process; secrets: texts that it does not tell."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LogFormatter(secrets))
    for name, level in _LOGGERS.items():
        logger = logging.getLogger(name)
        logger.addHandler(handler)
        logger.setLevel(level)
        logger.propagate = False
