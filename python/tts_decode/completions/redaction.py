"""Keeps secrets out of messages and logs: keys, passwords, and the values of a URL's query."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from urllib.parse import quote, quote_plus, unquote, unquote_plus

_HIDDEN = "***"
_SHORTEST = 4  # characters; shorter secrets occur in many texts by chance
_LOGGERS = ("httpx", "httpcore.connection", "httpcore.http11", "httpcore.http2", "httpcore.proxy")


class Redaction:
    """Replaces the given secrets in texts, and in the HTTP client's log.

    secrets: plain, or as written in a URL.
    """

    def __init__(self, secrets: Iterable[str]) -> None:
        spelled = {text for secret in secrets if len(secret) >= _SHORTEST for text in _spellings(secret)}
        self._secrets = sorted(spelled, key=len, reverse=True)  # one may be part of another
        if self._secrets:
            _LOG_FILTER.add(self)

    def __call__(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, _HIDDEN)
        return text


def _spellings(secret: str) -> set[str]:
    """Returns the secret as it is, in a URL, and in JSON, including JSON nested in JSON."""
    spelled = {secret, unquote(secret), unquote_plus(secret)}
    spelled |= {
        encode(text, safe=safe) for text in spelled for encode in (quote, quote_plus) for safe in ("", "/")
    }
    spelled |= {repr(text)[1:-1] for text in spelled}  # as in the client's log
    for _ in range(2):
        spelled |= {json.dumps(text, ensure_ascii=plain)[1:-1] for text in spelled for plain in (False, True)}
        spelled |= {text.replace("/", "\\/") for text in spelled}
    return spelled


class _LogFilter(logging.Filter):
    """A filter on the client's loggers, which log whole URLs, and headers at the level DEBUG."""

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
