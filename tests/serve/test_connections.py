"""Over raw sockets: clients that leave or send too much beside an answer, faults of HTTP, ends of servers."""

import contextlib
import json
import socket
import threading

import pytest
from raw_http import Answer, connect, drops, head_of, read_answer, request, send
from serving import until
from tts_decode.serve import connection as connections
from tts_decode.serve.config import Limits

LONG = {"prompt": "The quick brown fox", "max_tokens": 480, "n": 8}
NEXT = request("/v1/completions", {"prompt": "x", "max_tokens": 2})


@pytest.mark.parametrize("early", [b"x", b"\r\n", NEXT, NEXT * 3, NEXT[:40]])
@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_after_early_bytes_is_seen_to_leave(served, early, stream):
    connection = send(served.port, "/v1/completions", LONG | {"stream": stream})
    until(lambda: served.decoder.stats().branches >= 8)
    connection.sendall(early)
    connection.close()
    until(served.idle)
    until(lambda: served.connections == 0)
    assert served.decoder.stats().generated_tokens < 8 * 480  # nothing ran to its end


def test_a_client_that_ends_its_side_has_left(served):
    connection = send(served.port, "/v1/completions", LONG)
    until(lambda: served.decoder.stats().branches >= 8)
    connection.shutdown(socket.SHUT_WR)
    until(served.idle)
    assert served.decoder.stats().generated_tokens < 8 * 480
    connection.close()


def test_requests_in_a_row_are_answered_in_a_row(served):
    bodies = [{"prompt": "x", "max_tokens": count, "seed": 1} for count in (9, 1, 4, 2)]
    with connect(served.port) as connection:
        connection.sendall(b"".join(request("/v1/completions", body) for body in bodies))
        answers = [read_answer(connection) for _ in bodies]
    counts = [json.loads(answer.body)["usage"]["completion_tokens"] for answer in answers]
    assert counts == [9, 1, 4, 2]


def test_no_more_comes_beside_an_answer_than_there_is_room_for(served):
    connection = send(served.port, "/v1/completions", LONG)
    until(lambda: served.decoder.stats().branches >= 8)
    with contextlib.suppress(ConnectionError):
        connection.sendall(b"x" * (1 << 22))
    until(lambda: drops(connection))
    connection.close()
    until(served.idle)


HEADS = {
    "no HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 3 + b"\r\n\r\n",
    "no version": b"GET /health\r\n\r\n",
    "no host": b"GET /health HTTP/1.1\r\n\r\n",
    "two hosts": b"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n",
    "a blank before a colon": b"GET /health HTTP/1.1\r\nHost : localhost\r\n\r\n",
    "a line without a colon": b"GET /health HTTP/1.1\r\nHost: localhost\r\nnothing\r\n\r\n",
    "a zero byte": b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: a\0b\r\n\r\n",
    "a head of 80 kB": b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 80_000 + b"\r\n\r\n",
    "9000 headers": b"GET /health HTTP/1.1\r\nHost: localhost\r\n" + b"X: aaaaaaaa\r\n" * 9000 + b"\r\n",
    "two lengths": head_of("/v1/completions", b"Content-Length: 1", b"Content-Length: 2") + b"{}",
    "a negative length": head_of("/v1/completions", b"Content-Length: -1"),
    "a length with a sign": head_of("/v1/completions", b"Content-Length: +2") + b"{}",
    "a length of 5000 digits": head_of("/v1/completions", b"Content-Length: " + b"9" * 5000),
    "an unknown coding": head_of("/v1/completions", b"Transfer-Encoding: gzip, chunked") + b"0\r\n\r\n",
    "a chunk of no size": head_of("/v1/completions", b"Transfer-Encoding: chunked") + b"zz\r\n{}\r\n",
    "a chunk of minus one": head_of("/v1/completions", b"Transfer-Encoding: chunked") + b"-1\r\n{}\r\n",
    "a chunk of 21 digits": head_of("/v1/completions", b"Transfer-Encoding: chunked") + b"f" * 21 + b"\r\n",
    "a chunk with more": head_of("/v1/completions", b"Transfer-Encoding: chunked") + b"1\r\n{}}}\r\n",
}


@pytest.mark.parametrize("name", HEADS)
def test_what_is_no_http_gets_an_error_of_the_protocol_and_the_connection_ends(served, name):
    with connect(served.port) as connection:
        connection.sendall(HEADS[name])
        answer = read_answer(connection)
        assert answer.status in (400, 413, 431)
        assert json.loads(answer.body)["error"].keys() == {"message", "type", "param", "code"}
        assert answer.status != 400 or connection.recv(1) == b""
    assert served.complete("x", max_tokens=2)


ODD = {
    "both framings": (
        head_of("/v1/completions", b"Content-Length: 4", b"Transfer-Encoding: chunked")
        + b'1e\r\n{"prompt":"x","max_tokens": 2}\r\n0\r\n\r\n',
        400,
    ),
    "chunks of one byte": (
        head_of("/v1/completions", b"Transfer-Encoding: chunked")
        + b"".join(b"1\r\n%c\r\n" % byte for byte in b'{"prompt":"x","max_tokens":2}')
        + b"0\r\n\r\n",
        200,
    ),
    "chunks with extensions": (
        head_of("/v1/completions", b"Transfer-Encoding: chunked")
        + b'1d;a=b;c="d"\r\n{"prompt":"x","max_tokens":2}\r\n0\r\nTrailer: x\r\n\r\n',
        200,
    ),
    "a body that is packed": (
        head_of("/v1/completions", b"Content-Encoding: gzip", b"Content-Length: 2") + b"{}",
        415,
    ),
    "HEAD": (b"HEAD /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n", 200),
    "HEAD of what is posted": (b"HEAD /v1/completions HTTP/1.1\r\nHost: localhost\r\n\r\n", 405),
    "OPTIONS": (b"OPTIONS /v1/completions HTTP/1.1\r\nHost: localhost\r\nOrigin: http://a.b\r\n\r\n", 405),
    "OPTIONS *": (b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
    "CONNECT": (b"CONNECT evil.example:80 HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
    "a method of its own": (b"HACK /health HTTP/1.1\r\nHost: localhost\r\n\r\n", 405),
    "a whole address": (b"GET http://evil.example/health HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
    "a path up": (b"GET /v1/../../etc/passwd HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
    "a path in percents": (b"GET /v1/%2e%2e/%2e%2e/etc/passwd HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
    "no UTF-8 in percents": (b"GET /v1/%ff%fe%00%0d%0aX:%20y HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
    "a model in percents": (b"GET /v1/models/%2e%2e%2f%00%0d%0a HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
    "two slashes": (b"GET //health HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
    "a web socket": (
        b"GET /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n",
        405,
    ),
    "HTTP/2 in the clear": (
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
        b"HTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n",
        200,
    ),
    "a header of bytes": (b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: \xff\xfe\x80\r\n\r\n", 200),
    "HTTP/1.0": (b"GET /health HTTP/1.0\r\nHost: localhost\r\n\r\n", 200),
    "a GET with a body": (
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\nhello",
        200,
    ),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_requests_have_the_answer_of_their_path(served, name):
    data, status = ODD[name]
    with connect(served.port) as connection:
        connection.sendall(data)
        answer = read_answer(connection, bodiless=name.startswith("HEAD"))
    assert answer.status == status
    if answer.body and status != 200:
        assert json.loads(answer.body)["error"].keys() == {"message", "type", "param", "code"}


def test_a_fault_behind_an_answer_does_not_break_into_it(served):
    with connect(served.port) as connection:
        connection.sendall(request("/v1/completions", {"prompt": "x", "max_tokens": 60}) + b"no HTTP\r\n\r\n")
        first, second = read_answer(connection), read_answer(connection)
    assert json.loads(first.body)["usage"]["completion_tokens"] == 60
    assert (second.status, json.loads(second.body)["error"]["code"]) == (400, "invalid_http")


def test_a_body_that_goes_on_behind_its_answer_is_read_for_a_while_only(serve):
    served = serve(limits=Limits(body_bytes=100, idle_seconds=0.3))
    with connect(served.port) as connection:
        connection.sendall(head_of("/v1/completions", b"Content-Length: 1000000") + b"{")
        assert read_answer(connection).status == 413
        until(lambda: drops(connection))


def test_too_many_connections_are_refused_in_the_form_of_the_protocol(served, monkeypatch):
    served.http.get("/health")
    monkeypatch.setattr(connections, "CONNECTIONS", 1)
    with connect(served.port) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        answer = read_answer(connection)
        assert (answer.status, json.loads(answer.body)["error"]["code"]) == (503, "unavailable")
        assert answer.headers["connection"] == "close"
        assert connection.recv(1) == b""
    monkeypatch.undo()
    assert served.http.get("/health").status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_a_server_that_ends_says_so_in_the_form_of_the_protocol(serve, stream):
    served = serve(grace=0.2)
    connection = send(served.port, "/v1/completions", LONG | {"n": 64, "stream": stream})
    until(lambda: served.decoder.stats().branches >= 64)
    answers: list[Answer] = []
    reader = threading.Thread(target=lambda: answers.append(read_answer(connection)))
    reader.start()
    served.assert_ends()
    reader.join(30)
    (answer,) = answers
    body = answer.body.split(b"data: ")[-2] if stream else answer.body
    assert answer.status == (200 if stream else 503)
    assert json.loads(body)["error"]["code"] == "unavailable"
    connection.close()
