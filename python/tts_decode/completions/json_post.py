"""POST of JSON to an untrusted server: bounded in time and size, with secrets kept out of messages."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Mapping
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import httpx

from tts_kernels.checks import number

from ..core.checks import checked_count
from ..core.visible import visible
from ..errors import EngineError
from .redaction import Redaction

_LONGEST_WAIT = 60.0  # seconds; longest Retry-After that is honoured
_EXCERPT = 200  # characters of a server's answer in an error message
_DEEPEST = 32  # nesting of objects and lists in an answer
_ERROR_BYTES = 1 << 16  # of the answer to a failed call


class _Link(NamedTuple):
    """State that belongs to one event loop."""

    client: httpx.AsyncClient
    slots: asyncio.Semaphore


class JSONPost:
    """Calls of one URL.

    Args:
        base_url, path: the URL is `base_url` with `path` after its own path, before its query. A user and a
            password in it are sent as basic authentication.
        api_key: sent as a bearer token.
        timeout: total seconds that a call may take, including retries and the waits between them. They count
            from its turn among `max_connections` on.
        retries, backoff, max_connections: as in `OpenAICompletions`.

    Attributes:
        url: as shown in messages, without user, password and the values of its query.
    """

    def __init__(
        self,
        base_url: str,
        path: str,
        api_key: str | None,
        *,
        timeout: float,
        retries: int,
        backoff: float,
        max_connections: int,
    ) -> None:
        self._retries = checked_count("retries", retries, 0)
        self._max_connections = checked_count("max_connections", max_connections)
        self._timeout = number("timeout", timeout, above=0, what="a number of seconds")
        self._backoff = number("backoff", backoff, above=0, what="a number of seconds")
        url = _parsed_url(base_url)
        self._url = url.copy_with(raw_path=_raw_path(url, path), userinfo=b"", fragment=None)
        self._headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        if credentials := _credentials(url, api_key):
            self._headers["Authorization"] = credentials
        fields = [field.partition("=") for field in url.query.decode().split("&") if field]
        values = [value if equals else name for name, equals, value in fields]  # a key may be the whole field
        login = url.userinfo.decode()
        self.redact = Redaction([login, login.partition(":")[2], *credentials.split()[1:], *values])
        query = "&".join(f"{name}=***" if equals else "***" for name, equals, _ in fields)
        self.url = str(self._url.copy_with(query=None)) + (f"?{query}" if query else "")
        self._links: WeakKeyDictionary[asyncio.AbstractEventLoop, _Link] = WeakKeyDictionary()

    async def __call__(self, body: Mapping[str, Any], max_bytes: int) -> dict[str, Any]:
        """Returns the JSON object that the server answers, at most `max_bytes` long.

        On cancellation it closes the connection, which tells the server to stop.
        """
        client, slots = self._link()
        async with slots:
            try:
                return await asyncio.wait_for(self._tried(client, body, max_bytes), self._timeout)
            except asyncio.TimeoutError:
                raise EngineError(f"POST {self.url}: no answer within {self._timeout:g} s") from None

    def error(self, what: str, answer: object) -> EngineError:
        """Returns an error saying that `what` is wrong with an answer, quoting the beginning of both."""
        text = answer if isinstance(answer, str) else json.dumps(answer)
        return EngineError(f"POST {self.url}: {self._quoted(what)}: {self._quoted(text)}")

    def _quoted(self, text: str) -> str:
        """Returns the beginning of a text, safe for a message."""
        return visible(self.redact(text)[:_EXCERPT])

    def _link(self) -> _Link:
        loop = asyncio.get_running_loop()
        link = self._links.get(loop)
        if link is None:
            # No connection is kept: it could not be closed after the loop has ended.
            limits = httpx.Limits(max_keepalive_connections=0)
            try:
                client = httpx.AsyncClient(timeout=None, limits=limits)
            except (httpx.InvalidURL, ValueError, OSError) as error:  # the text can hold a proxy's password
                raise EngineError(
                    f"POST {self.url}: {type(error).__name__}: the environment's settings of proxies or "
                    "certificates cannot be used; see HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, SSL_CERT_FILE"
                ) from None
            link = self._links[loop] = _Link(client, asyncio.Semaphore(self._max_connections))
        return link

    async def _tried(
        self, client: httpx.AsyncClient, body: Mapping[str, Any], max_bytes: int
    ) -> dict[str, Any]:
        data = json.dumps(body).encode()
        for attempt in range(self._retries + 1):
            last = attempt == self._retries
            wait = self._backoff * 2**attempt
            try:
                status, after, text = await self._exchange(client, data, max_bytes)
            except httpx.HTTPError as error:
                if last:
                    what = self._quoted(f"{type(error).__name__}: {error}")
                    raise EngineError(f"POST {self.url}: {what} (tried {attempt + 1} times)") from None
            else:
                if status == 200:
                    return self._parsed(text)
                if last or not (status == 429 or status >= 500):
                    times = f" (tried {attempt + 1} times)" if attempt else ""
                    raise self.error(f"status {status}{times}", text)
                wait = wait if after is None else min(after, _LONGEST_WAIT)
            await asyncio.sleep(wait)
        raise AssertionError("the last attempt returns or raises")

    async def _exchange(
        self, client: httpx.AsyncClient, data: bytes, max_bytes: int
    ) -> tuple[int, float | None, str]:
        """Sends one request; returns status, seconds of Retry-After, body."""
        read = bytearray()
        async with client.stream("POST", self._url, content=data, headers=self._headers) as response:
            failed = response.status_code != 200
            after = _seconds(response.headers.get("Retry-After"))
            coding = response.headers.get("Content-Encoding", "identity")
            if coding.lower() != "identity":  # a few bytes may decompress to gigabytes
                what = f"Content-Encoding {coding!r}, which was not asked for"
                if not failed:
                    raise self.error(what, "")
                return response.status_code, after, what
            async for chunk in response.aiter_raw():
                read += chunk
                if failed and len(read) > _ERROR_BYTES:
                    break
                if not failed and len(read) > max_bytes:
                    raise self.error(
                        f"the answer is larger than {max_bytes:,} bytes", _decoded(read[:_ERROR_BYTES])
                    )
        return response.status_code, after, _decoded(read)

    def _parsed(self, text: str) -> dict[str, Any]:
        try:
            answer = json.loads(text, parse_constant=_refuse_constant)
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict) or not _is_flat(answer):
            raise self.error("the answer is nested deeply, or no JSON object", text)
        return answer


def _parsed_url(base_url: str) -> httpx.URL:
    expected = "expected something like http://localhost:8000/v1"
    if not isinstance(base_url, str):
        raise TypeError(f"base_url: got {type(base_url).__name__}, {expected}")
    try:
        url = httpx.URL(base_url)
    except (httpx.InvalidURL, ValueError):
        raise ValueError(f"base_url: got what is no URL, {expected}") from None
    if url.scheme not in ("http", "https") or not url.host:
        raise ValueError(f"base_url: got scheme {url.scheme!r} and host {url.host!r}, {expected}")
    if url.fragment:
        raise ValueError(f"base_url: got a fragment (#...), {expected}")
    return url


def _raw_path(url: httpx.URL, path: str) -> bytes:
    before, mark, query = url.raw_path.partition(b"?")
    return before.rstrip(b"/") + path.encode() + mark + query


def _credentials(url: httpx.URL, api_key: str | None) -> str:
    """Returns the Authorization header; empty for none."""
    if api_key is None:
        if not url.userinfo:
            return ""
        return "Basic " + base64.b64encode(f"{url.username}:{url.password}".encode()).decode()
    if not isinstance(api_key, str):
        raise TypeError(f"api_key: got {type(api_key).__name__}, expected a string")
    if not api_key or not all("!" <= character <= "~" for character in api_key):
        raise ValueError(
            f"api_key: got {len(api_key)} characters with a line break, a space or another one that a header "
            "cannot hold, or none; a key read from a file may need .strip()"
        )
    if url.userinfo:
        raise ValueError("api_key: got a key beside a user in base_url, expected one of the two")
    return f"Bearer {api_key}"


def _decoded(data: bytes | bytearray) -> str:
    return data.decode("utf-8", "replace")


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _is_flat(answer: dict[str, Any]) -> bool:
    """Whether code that descends into it, such as `repr`, needs no deep stack."""
    level: list[Any] = [answer]
    for _ in range(_DEEPEST):
        inner = [value.values() if isinstance(value, dict) else value for value in level]
        level = [item for values in inner for item in values if isinstance(item, (dict, list))]
    return not level


def _seconds(header: str | None) -> float | None:
    """Returns Retry-After in seconds; None if it is missing or a date."""
    return float(header) if header is not None and header.isdecimal() else None
