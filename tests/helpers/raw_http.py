"""HTTP by hand: sends requests as bytes, and reads answers from a socket."""

from __future__ import annotations

import json
import socket
from dataclasses import dataclass
from typing import Any


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes


def head_of(path: str, *lines: bytes) -> bytes:
    """A head of a POST with JSON, with further lines."""
    begin = [f"POST {path} HTTP/1.1".encode(), b"Host: localhost", b"Content-Type: application/json"]
    return b"\r\n".join([*begin, *lines, b"", b""])


def request(path: str, body: Any) -> bytes:
    data = json.dumps(body).encode()
    return head_of(path, b"Content-Length: %d" % len(data)) + data


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=60)


def send(port: int, path: str, body: Any) -> socket.socket:
    """A connection on which a request was sent."""
    connection = connect(port)
    connection.sendall(request(path, body))
    return connection


def read_answer(connection: socket.socket, *, bodiless: bool = False) -> Answer:
    """The next answer, byte by byte, so that what follows stays on the socket. EOFError where none comes."""
    first, *lines = _until(connection, b"\r\n\r\n").decode("latin-1").strip().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    body = b""
    if bodiless:
        pass
    elif "content-length" in headers:
        body = _exactly(connection, int(headers["content-length"]))
    elif headers.get("transfer-encoding") == "chunked":
        while size := int(_until(connection, b"\r\n"), 16):
            body += _exactly(connection, size)
            _exactly(connection, 2)
        _exactly(connection, 2)
    return Answer(int(first.split()[1]), headers, body)


def drops(connection: socket.socket) -> bool:
    """Whether the other side has dropped the connection: it takes no more bytes."""
    try:
        connection.send(b"\r\n")
    except ConnectionError:
        return True
    return False


def _until(connection: socket.socket, end: bytes) -> bytes:
    data = b""
    while not data.endswith(end):
        data += _exactly(connection, 1)
    return data


def _exactly(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = connection.recv(size - len(data))
        if not part:
            raise EOFError(f"the connection ended after {data!r}")
        data += part
    return data
