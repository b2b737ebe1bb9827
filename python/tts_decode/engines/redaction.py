"""Keeps secrets out of messages and logs: keys, passwords, and what a URL's query carries."""

from __future__ import annotations

import logging
from collections.abc import Iterable

_HIDDEN = "***"
_SHORTEST = 4  # characters; anything shorter also stands for itself in plenty of texts
_LOGGERS = ("httpx", "httpcore.connection", "httpcore.http11", "httpcore.http2", "httpcore.proxy")


class Redaction:
    """Replaces the given secrets in texts, and in what the HTTP client logs."""

    def __init__(self, secrets: Iterable[str]) -> None:
        # The longest first: one may be a part of another.
        self._secrets = sorted({s for s in secrets if len(s) >= _SHORTEST}, key=len, reverse=True)
        if self._secrets:
            _LOG_FILTER.add(self)

    def __call__(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, _HIDDEN)
        return text


class _LogFilter(logging.Filter):
    """On the loggers of the client, which name whole URLs, and headers at the level DEBUG."""

    def __init__(self) -> None:
        super().__init__()
        self._redactions: list[Redaction] = []

    def add(self, redaction: Redaction) -> None:
        self._redactions.append(redaction)
        for name in _LOGGERS:
            logging.getLogger(name).addFilter(self)  # once only, however often it is added

    def filter(self, record: logging.LogRecord) -> bool:
        plain = message = record.getMessage()
        for redaction in self._redactions:
            message = redaction(message)
        if message != plain:
            record.msg, record.args = message, ()
        return True


_LOG_FILTER = _LogFilter()
