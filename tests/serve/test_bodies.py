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


def test_one_body_alone_has_room():
    async def run():
        bodies = Bodies(Limits(body_bytes=100, bodies_bytes=10))
        async with bodies.read(Request(b'{"prompt":', b' "a text of its own"}'), CompletionBody) as body:
            assert (body.prompt, bodies.held) == (["a text of its own"], 31)
            with pytest.raises(APIError, match="on their way") as caught:
                async with bodies.read(Request(b" " * 80), CompletionBody):
                    pass
        assert (caught.value.status, bodies.held) == (503, 0)

    asyncio.run(run())
