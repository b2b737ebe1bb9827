"""Whatever ends a request, its branches and pages are free again: clients that leave, limits, shutdowns."""

import asyncio
import contextlib
import json
import socket

import httpx
import pytest
from raw_http import drops, send
from serving import until
from tts_decode.serve.config import Limits

from benches.integrations.serve_soak import ENDS, soak

LONG = {"prompt": "The quick brown fox", "max_tokens": 480, "n": 8}
PATHS = {
    "/v1/completions": LONG,
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 400, "n": 8},
}
SEARCH = {"prompt": "The quick", "max_tokens": 400, "tts": {"strategy": "beam_search", "n": 8}}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("path", "body"), [*PATHS.items(), ("/v1/completions", SEARCH)])
def test_a_client_that_leaves_frees_its_branches_at_once(served, path, body, stream):
    connection = send(served.port, path, body | {"stream": stream})
    until(lambda: served.decoder.stats().branches >= 8)
    connection.close()
    until(served.idle)
    assert served.decoder.stats().generated_tokens < 8 * 400  # nothing ran to its end
    assert "tts_decode_cancelled_requests_total 1.0" in served.http.get("/metrics").text


def test_a_client_that_reads_nothing_is_given_up(serve):
    served = serve(limits=Limits(idle_seconds=0.5))
    body = {"prompt": "The quick brown fox", "max_tokens": 480, "n": 64, "logprobs": 20, "stream": True}
    connection = send(served.port, "/v1/completions", body)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    until(lambda: served.decoder.stats().branches >= 64)
    until(served.idle, 60)
    until(lambda: drops(connection), 60)
    assert "tts_decode_cancelled_requests_total 1.0" in served.http.get("/metrics").text
    connection.close()


@pytest.mark.parametrize("requests", [1, 2])
def test_a_connection_that_is_not_read_is_dropped(serve, requests):
    """One answer is written at once, beyond what the sockets hold. With two, the second waits to be sent."""
    served = serve(limits=Limits(idle_seconds=0.5, sequences=256))
    body = {"prompt": "The quick brown fox", "max_tokens": 200, "n": 64, "logprobs": 20}
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect(("127.0.0.1", served.port))
    data = json.dumps(body).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    connection.sendall((f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data) * requests)
    until(lambda: served.decoder.stats().branches >= 64)
    until(served.idle, 60)
    until(lambda: drops(connection), 30)
    connection.close()
    until(served.idle)


def test_a_body_that_does_not_come_is_not_waited_for(serve):
    served = serve(limits=Limits(idle_seconds=0.3))
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with socket.create_connection(("127.0.0.1", served.port)) as connection:
        connection.sendall(head + b"Content-Length: 100\r\n\r\n{")
        assert connection.recv(100).startswith(b"HTTP/1.1 408")


def test_a_head_that_does_not_come_is_not_waited_for(serve):
    served = serve(limits=Limits(idle_seconds=0.3))
    with socket.create_connection(("127.0.0.1", served.port)) as connection:
        connection.settimeout(10)
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: loc")
        assert connection.recv(100) == b""


def test_a_head_that_trickles_is_not_waited_for(serve):
    served = serve(limits=Limits(idle_seconds=0.3))
    with socket.create_connection(("127.0.0.1", served.port)) as connection:
        connection.settimeout(0.05)
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: ")
        for _ in range(600):
            with contextlib.suppress(TimeoutError):
                answer = connection.recv(100)
                break
            connection.sendall(b"x")
        else:
            pytest.fail("the connection is still open")
    assert answer == b""


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_takes_too_long_ends_with_an_error(serve, stream):
    served = serve(limits=Limits(request_seconds=0.2, idle_seconds=5.0))
    answer = served.post("/v1/completions", LONG | {"n": 64, "stream": stream})
    error = answer.json() if not stream else json.loads(answer.text.split("\n\n")[-3].removeprefix("data: "))
    assert error["error"]["code"] == "timeout"
    assert answer.status_code == (200 if stream else 504)
    until(served.idle)


def test_more_sequences_than_there_may_be_are_refused_for_now(serve):
    served = serve(limits=Limits(sequences=8, idle_seconds=5.0))
    connection = send(served.port, "/v1/completions", LONG)
    until(lambda: served.decoder.stats().branches >= 8)
    answer = served.post("/v1/completions", {"prompt": "x"})
    assert answer.status_code == 429
    assert int(answer.headers["retry-after"]) >= 1
    assert answer.json()["error"]["code"] == "rate_limit_exceeded"
    connection.close()
    until(served.idle)
    assert served.complete("x", max_tokens=2)["usage"]["completion_tokens"] == 2


def test_a_server_that_ends_cancels_what_runs(serve, served):
    connection = send(served.port, "/v1/completions", LONG | {"stream": True})
    until(lambda: served.decoder.stats().branches >= 8)
    served.assert_ends()
    connection.close()
    assert served.decoder.stats().branches == 0
    assert served.decoder.stats().resident_bytes == 0


def test_clients_side_by_side_get_what_each_gets_alone(served):
    bodies = [{"prompt": f"{i % 3} The quick", "seed": i, "max_tokens": 30} for i in range(24)]
    alone = [served.complete(**body)["choices"] for body in bodies]

    async def together():
        async with httpx.AsyncClient(base_url=served.url, timeout=60) as client:
            return await asyncio.gather(*(client.post("/v1/completions", json=body) for body in bodies))

    assert [answer.json()["choices"] for answer in asyncio.run(together())] == alone


def test_300_requests_of_all_kinds_leave_no_page(serve):
    served = serve(limits=Limits(idle_seconds=1.0, sequences=64))
    ends = asyncio.run(soak(served.port, 300, seed=1))
    assert ends.total() == 300
    assert ends.keys() <= set(ENDS)
    assert ends["200"] > 50
    assert ends["400"] > 20
    assert ends["broken off"] > 20
    assert ends["half closed"] > 5
    served.assert_empties()
    until(lambda: served.connections == 0)
