"""Serves one page over HTTP, to this machine only."""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from .display import Screen
from .errors import CommandError

_HOST = "127.0.0.1"


def serve_page(page: str, port: int, *, ready: Callable[[str], object] | None = None) -> None:
    """Serves the page at / until a signal ends the command.

    port: 0 chooses a free one. ready: called with the address.

    Raises CommandError if the port is taken.
    """
    try:
        server = ThreadingHTTPServer((_HOST, port), handler(page.encode()))
    except OSError as cause:
        raise CommandError(
            f"--serve: port {port} of {_HOST} cannot be used: {cause.strerror}; give another, or 0 for one "
            "that is free"
        ) from cause
    with server:
        address = f"http://{_HOST}:{server.server_port}/"
        Screen().print(f"{address} (Ctrl-C ends)", soft_wrap=True)
        if ready is not None:
            ready(address)
        server.serve_forever()


def handler(page: bytes) -> type[BaseHTTPRequestHandler]:
    """Returns a handler that answers GET and HEAD of / with the page.

    It refuses requests with another host's name, so that a site whose name points here cannot read the page.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(with_body=True)

        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def log_message(self, format: str, *arguments: object) -> None:
            """Logs nothing: the terminal is the user's."""

        def _answer(self, *, with_body: bool) -> None:
            host = self.headers.get("Host", "").partition(":")[0]
            if host not in (_HOST, "localhost"):
                self.send_error(HTTPStatus.FORBIDDEN)
                return
            if self.path.partition("?")[0] != "/":
                self.send_error(HTTPStatus.NOT_FOUND)
                return
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(page)))
            for name, value in _HEADERS.items():
                self.send_header(name, value)
            self.end_headers()
            if with_body:
                self.wfile.write(page)

    return Handler


_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
