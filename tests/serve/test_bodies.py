"""Bodies that come at a time: their bytes are bounded in sum, those of slow senders included."""

import asyncio
import contextlib
import json
import threading

import pytest
from raw_http import connect, head_of, read_answer
from serving import until
from tts_decode.serve.bodies import Bodies
from tts_decode.serve.config import Limits
from tts_decode.serve.errors import APIError
from tts_decode.serve.prompts import Prompts
from tts_decode.serve.protocol import CompletionBody

LIMITS = Limits(body_bytes=1000, bodies_bytes=1500, idle_seconds=5.0)
SHORT = {"prompt": "x", "max_tokens": 1}
LONG = {"prompt": "x", "max_tokens": 1, "user": "y" * 700}


def test_slow_senders_hold_their_bytes(serve):
    served = serve(limits=LIMITS)
    data = json.dumps(LONG).encode()
    with contextlib.ExitStack() as stack:
        senders = [stack.enter_context(connect(served.port)) for _ in range(2)]
        for sender in senders:
            sender.sendall(head_of("/v1/completions", b"Content-Length: %d" % len(data)) + data[:700])
        until(lambda: served.server.bodies.held == 1400)
        answer = served.post("/v1/completions", LONG)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "unavailable")
        assert int(answer.headers["retry-after"]) >= 1
        assert served.complete(**SHORT)  # has room
        assert served.server.bodies.held == 1400
        for sender in senders:
            sender.sendall(data[700:])
        assert [read_answer(sender).status for sender in senders] == [200, 200]
    until(lambda: served.server.bodies.held == 0)
    assert served.complete(**LONG)


def test_a_sender_who_leaves_gives_its_bytes_back(serve):
    served = serve(limits=LIMITS)
    with connect(served.port) as sender:
        sender.sendall(head_of("/v1/completions", b"Transfer-Encoding: chunked") + b"2bc\r\n" + b" " * 700)
        until(lambda: served.server.bodies.held == 700)
    until(lambda: served.server.bodies.held == 0)


def test_bytes_are_held_until_the_prompt_is_read(serve, monkeypatch):
    """Many requests may wait for the tokenizer, each with its whole body."""
    served = serve(limits=LIMITS)
    original, go_on = Prompts.of_completion, threading.Event()

    async def waiting(self, body):
        await asyncio.to_thread(go_on.wait, 30)
        return await original(self, body)

    monkeypatch.setattr(Prompts, "of_completion", waiting)
    answers = []
    thread = threading.Thread(target=lambda: answers.append(served.post("/v1/completions", LONG)))
    thread.start()
    until(lambda: served.server.admission.running == 1)
    assert served.server.bodies.held == len(json.dumps(LONG, separators=(",", ":")))
    go_on.set()
    thread.join(30)
    assert [answer.status_code for answer in answers] == [200]
    assert served.server.bodies.held == 0


@pytest.mark.parametrize("body", [b"{", b"[1]", b'{"prompt": 7}'])
def test_a_refused_body_gives_its_bytes_back(serve, body):
    served = serve(limits=LIMITS)
    headers = {"Content-Type": "application/json"}
    assert served.http.post("/v1/completions", content=body, headers=headers).status_code == 400
    assert served.server.bodies.held == 0


class Request:
    """One whose body comes in parts."""

    headers = {"content-type": "application/json"}  # noqa: RUF012

    def __init__(self, *parts):
        self._parts = parts

    async def stream(self):
        for part in self._parts:
            yield part


def key(name):
    return {"Authorization": f"Bearer {name}"}


def test_who_holds_most_makes_room_for_others(serve):
    keys = ("first-key-of-all", "second-key-of-all")
    served = serve(limits=LIMITS, keys=keys)
    data = json.dumps(LONG).encode()
    length = b"Content-Length: %d" % len(data)
    with contextlib.ExitStack() as stack:
        senders = [stack.enter_context(connect(served.port)) for _ in range(2)]
        for sender, size in zip(senders, (700, 600), strict=True):
            sender.sendall(head_of("/v1/completions", length, *lines(key(keys[0]))) + data[:size])
        until(lambda: served.server.bodies.held == 1300)
        answer = served.post("/v1/completions", LONG, headers=key(keys[0]))
        assert answer.status_code == 503  # by one client there is no room
        answer = served.post("/v1/completions", LONG, headers=key(keys[1]))
        assert answer.status_code == 200, answer.text
        given_up = read_answer(senders[0])
        assert (given_up.status, json.loads(given_up.body)["error"]["code"]) == (503, "unavailable")
        assert "most of them yours" in json.loads(given_up.body)["error"]["message"]
        until(lambda: served.server.bodies.held == 600)
        senders[1].sendall(data[600:])
        assert read_answer(senders[1]).status == 200  # the other one of its bodies was left alone
    until(lambda: served.server.bodies.held == 0)


def lines(headers):
    return [f"{name}: {value}".encode() for name, value in headers.items()]


async def slow(bodies, client, size, ends):
    """Holds a body of a size until it ends; returns the status that it would get."""

    class Slow:
        headers = Request.headers

        async def stream(self):
            yield b" " * size
            await ends.wait()
            yield b'{"prompt": "x"}'

    try:
        async with bodies.read(Slow(), CompletionBody, client):
            return 200
    except APIError as error:
        return error.status


def test_rooms_are_shared_by_what_each_client_holds():
    async def run():
        bodies = Bodies(Limits(body_bytes=200, bodies_bytes=300))
        ends = asyncio.Event()

        async def begun(client, size):
            task = asyncio.ensure_future(slow(bodies, client, size, ends))
            for _ in range(10):
                await asyncio.sleep(0)
            return task

        hog = [await begun("hog", 80 + i) for i in range(3)]  # 243 of 300
        quiet = await begun("quiet", 60)
        assert [task.done() for task in hog] == [False, False, True]  # its largest made room
        assert bodies.held == 80 + 81 + 60
        third = await begun("third", 90)
        assert [task.done() for task in hog] == [False, True, True]
        again = await begun("third", 80)  # 170 would be more than the 80 that the hog has left
        assert await again == 503
        ends.set()
        assert [await task for task in (*hog, quiet, third)] == [200, 503, 503, 200, 200]
        assert bodies.held == 0

    asyncio.run(run())


def test_one_body_alone_has_room():
    async def run():
        bodies = Bodies(Limits(body_bytes=100, bodies_bytes=10))
        first = Request(b'{"prompt":', b' "a text of its own"}')
        async with bodies.read(first, CompletionBody, "a") as body:
            assert (body.prompt, bodies.held) == (["a text of its own"], 31)
            with pytest.raises(APIError, match="on their way") as caught:
                async with bodies.read(Request(b" " * 80), CompletionBody, "a"):
                    pass
        assert (caught.value.status, bodies.held) == (503, 0)

    asyncio.run(run())
