"""Errors as a client gets them: a status, and OpenAI's form of what is wrong."""

from __future__ import annotations

from typing import Any

from ..errors import TTSError

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "overloaded_error",
    504: "timeout_error",
}
_RETRY_SECONDS = 1


class APIError(TTSError):
    """A request is not served.

    Attributes:
        status: of HTTP. message: for the client; it quotes nothing of this machine. param: the field that is
            wrong, None if it is none. code: for programs.
    """

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    @property
    def headers(self) -> dict[str, str]:
        return {"Retry-After": str(_RETRY_SECONDS)} if self.status in (429, 503) else {}

    @property
    def body(self) -> dict[str, Any]:
        kind = _TYPES.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def invalid(param: str, problem: str, code: str | None = "invalid_value") -> APIError:
    """400: a field has a value that cannot be served. problem: `got X, expected Y`."""
    return APIError(400, f"{param}: {problem}", param, code)


def unsupported(param: str, why: str) -> APIError:
    """400: a field of the protocol that is not served at all."""
    return invalid(param, f"not served: {why}", "unsupported_parameter")


def busy(message: str) -> APIError:
    return APIError(429, message, None, "rate_limit_exceeded")


def unavailable(message: str) -> APIError:
    return APIError(503, message, None, "unavailable")
