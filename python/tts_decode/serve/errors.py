"""Errors as a client gets them: a status, and a description in OpenAI's format."""

from __future__ import annotations

import json
import logging
import traceback
from asyncio import CancelledError
from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse

from tts_kernels import OutOfPagesError

from ..errors import ConstraintError, PromptTooLongError, TTSError

_log = logging.getLogger(__name__)

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "overloaded_error",
    504: "timeout_error",
}
_RETRY = {"Retry-After": "1"}  # seconds
_HEADERS = {401: {"WWW-Authenticate": "Bearer"}, 429: _RETRY, 503: _RETRY}
_LONGEST_GIVEN = 60  # characters of a client's own value that an error repeats
_SHOWN_DIGITS = 20  # of a longer number
_LONGEST_REASON = 300  # characters of a grammar's own message


def given(value: Any) -> str:
    """Returns what a client sent, as JSON and at most one line; lists and objects by their size.

    Shortened values say so: no text and no number is shown as another one.
    """
    if isinstance(value, (list, dict)):
        kind, of = ("a list", "items") if isinstance(value, list) else ("an object", "fields")
        return f"{kind} of {len(value)} {of}"
    if isinstance(value, str):
        cut = value[:_LONGEST_GIVEN]
        return repr(cut) + ("..." if len(cut) < len(value) else "")
    text = json.dumps(value)
    if len(text) > _LONGEST_GIVEN:  # an integer: other JSON values are shorter
        return f"{text[:_SHOWN_DIGITS]}... of {len(text.lstrip('-'))} digits"
    return text


def shortened(text: str, most: int) -> str:
    """Returns the text, cut after `most` characters and ended by three dots if it is longer."""
    return text if len(text) <= most else f"{text[:most]}..."


class APIError(TTSError):
    """A request is not served.

    Attributes:
        status: of HTTP. message: for the client; it reveals nothing about this machine. param: the wrong
            field, if any. code: for programs. headers: of the answer, including those that its status
            requires.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] = {},
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = _HEADERS.get(status, {}) | dict(headers)

    @property
    def body(self) -> dict[str, Any]:
        kind = _TYPES.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def invalid(param: str, problem: str, code: str | None = "invalid_value") -> APIError:
    """Returns a 400: a field has a value that cannot be served. problem: `got X, expected Y`."""
    return APIError(400, f"{param}: {problem}", param, code)


def at_most(name: str, value: int, limit: int, what: str = "") -> None:
    """Raises a 400 for a value above a limit. what: the noun that is counted."""
    if value > limit:
        got = f"{given(value)} {what}".strip()
        raise invalid(name, f"got {got}, expected at most {limit}")


def unsupported(param: str, why: str) -> APIError:
    """Returns a 400: a field of the protocol that is not served at all."""
    return invalid(param, f"not served: {why}", "unsupported_parameter")


def busy(message: str) -> APIError:
    return APIError(429, message, None, "rate_limit_exceeded")


def unavailable(message: str) -> APIError:
    return APIError(503, message, None, "unavailable")


def without_room(field: str, asked: int, room: int) -> APIError:
    """Returns a 400: all KV pages together hold fewer tokens than a request needs.

    field: the one that says how many.
    """
    problem = f"got prompts and choices of {asked} tokens in KV pages, expected at most {room}"
    return invalid(field, f"{problem}; ask for fewer choices, or shorter ones")


def internal() -> APIError:
    """Returns a 500 whose text reveals nothing about the inside."""
    return APIError(500, "the server failed; its log says more", None, "internal_error")


def as_api_error(error: BaseException) -> APIError:
    """Returns what a client is told of a failure; the rest goes to the log."""
    if isinstance(error, APIError):
        return error
    if isinstance(error, CancelledError):
        return unavailable("the server is shutting down")
    if isinstance(error, OutOfPagesError):
        return unavailable("no memory is left for the KV of this request; try again, or ask for less")
    if isinstance(error, PromptTooLongError):
        problem = "the prompt is too long for the model or its memory"
        return APIError(400, problem, None, "context_length_exceeded")
    if isinstance(error, ConstraintError):
        return invalid("response_format", shortened(str(error), _LONGEST_REASON))
    _log.error("a request failed:\n%s", "".join(traceback.format_exception(error)))
    return internal()


def error_response(error: APIError) -> JSONResponse:
    return JSONResponse(error.body, error.status, error.headers)
