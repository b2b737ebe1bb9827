"""Addresses that do not answer, in bounded time, and what is said where Ray is missing."""

from __future__ import annotations

import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from tts_decode.cluster import SearchPool, connection
from tts_decode.errors import ClusterError, MissingExtraError


@pytest.fixture
def unconnected(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a process that is not connected, whatever other tests did."""
    ray = pytest.importorskip("ray", reason="needs the package ray: pip install '.[ray]'")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(connection, "ANSWER_SECONDS", 0.5)


@contextmanager
def answering(reply: bytes) -> Iterator[str]:
    """The address of a server that says the same to all, and nothing where that is empty."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        try:
            stream, _ = server.accept()
            stream.sendall(reply)
            stream.recv(1000)
            time.sleep(2)
            stream.close()
        except OSError:
            pass

    threading.Thread(target=serve, daemon=True).start()
    with server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.usefixtures("unconnected")
@pytest.mark.parametrize(
    "address", ["somewhere", "host:", ":6379", "host:70000", "ray://host:10001", "host:x", ""]
)
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(ClusterError, match=r"address: got '.*', expected local, auto or HOST:PORT"):
        SearchPool(len, address=address)  # type: ignore[arg-type]


@pytest.mark.usefixtures("unconnected")
def test_an_address_where_nothing_is() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(
        ClusterError, match=rf"address: 127\.0\.0\.1:{port} does not answer \(.*refused\); start"
    ):
        SearchPool(len, address=f"127.0.0.1:{port}")  # type: ignore[arg-type]


@pytest.mark.usefixtures("unconnected")
@pytest.mark.parametrize("reply", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n"], ids=["silent", "http"])
def test_an_address_where_something_else_is(reply: bytes) -> None:
    began = time.monotonic()
    with answering(reply) as address, pytest.raises(ClusterError, match=f"address: .*{address}.*"):
        SearchPool(len, address=address)  # type: ignore[arg-type]
    assert time.monotonic() - began < 5


def test_ray_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(
        MissingExtraError, match=r"^ray: not installed; run: pip install 'tts-kernels\[ray\]' "
    ):
        SearchPool(len)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"decoder_factory": 3}, TypeError, "decoder_factory: got int, expected a function"),
        ({"actors": 0}, ValueError, "actors: got 0, expected"),
        ({"cpus": 1.5}, TypeError, "cpus: got"),
        ({"in_flight": 0}, ValueError, "in_flight: got 0"),
        ({"attempts": 0}, ValueError, "attempts: got 0"),
        ({"pinned_prompts": -1}, ValueError, "pinned_prompts: got -1"),
        ({"start_seconds": 0}, ValueError, "start_seconds: got 0"),
    ],
    ids=range(7),
)
def test_wrong_arguments(arguments: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        SearchPool(**({"decoder_factory": len} | arguments))  # type: ignore[arg-type]
