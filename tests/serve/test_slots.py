"""Sequences that requests hold: from before their prompts are read, until the engine has ended their work."""

import asyncio
import threading

import pytest
from raw_http import send
from serving import until
from tts_decode.serve import app
from tts_decode.serve.admission import Admission
from tts_decode.serve.config import Limits
from tts_decode.serve.errors import APIError
from tts_decode.serve.prompts import Prompts

PROMPT = "The quick brown"
KEYS = ("first-key-for-tests", "second-key-for-tests")


def test_sequences_are_held_until_the_work_has_ended(serve, monkeypatch):
    """The client is gone, but what the engine does for it takes a while to end."""
    served = serve()
    begun, gone, end = threading.Event(), threading.Event(), threading.Event()

    async def stubborn(decoder, retained, job, emit, usage):
        begun.set()
        try:
            await asyncio.sleep(60)
        finally:
            gone.set()
            await asyncio.to_thread(end.wait)
            usage.completion += 5

    monkeypatch.setattr(app, "generate", stubborn)
    connection = send(served.port, "/v1/completions", {"prompt": PROMPT, "n": 3})
    assert begun.wait(30)
    connection.close()
    assert gone.wait(30)
    assert "tts_decode_cancelled_requests_total 1.0" in served.http.get("/metrics").text
    assert served.server.admission.running == 3
    end.set()
    until(lambda: served.server.admission.running == 0)
    assert "tts_decode_generated_tokens_total 5.0" in served.http.get("/metrics").text


def test_a_request_without_room_is_refused_before_its_prompt_is_read(serve, monkeypatch):
    served = serve(limits=Limits(sequences=4, idle_seconds=5.0))
    connection = send(served.port, "/v1/completions", {"prompt": PROMPT, "n": 4, "max_tokens": 480})
    until(lambda: served.decoder.stats().branches >= 4)

    async def never(self, body):
        raise AssertionError("the prompt was read")

    monkeypatch.setattr(Prompts, "of_completion", never)
    assert served.post("/v1/completions", {"prompt": PROMPT}).status_code == 429
    connection.close()


def test_a_refused_prompt_gives_its_sequences_back(served):
    assert served.post("/v1/completions", {"prompt": "x" * 513, "n": 8}).status_code == 400
    assert served.server.admission.running == 0


def test_a_client_has_its_share(serve):
    served = serve(limits=Limits(sequences=8, client_sequences=4, idle_seconds=5.0), keys=KEYS)
    first, second = ({"Authorization": f"Bearer {key}"} for key in KEYS)
    body = {"prompt": PROMPT, "max_tokens": 480, "n": 4, "stream": True}
    with served.http.stream("POST", "/v1/completions", json=body, headers=first) as answer:
        assert answer.status_code == 200
        short = {"prompt": PROMPT, "max_tokens": 2}
        assert served.post("/v1/completions", short, headers=first).status_code == 429
        spelled = {"Authorization": f"bEARER   {KEYS[0]}"}  # the same key
        assert served.post("/v1/completions", short, headers=spelled).status_code == 429
        assert served.post("/v1/completions", short, headers=second).status_code == 200
    until(served.idle)
    assert served.post("/v1/completions", short, headers=first).status_code == 200
    answer = served.post("/v1/completions", short | {"n": 5}, headers=first)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "n")


def test_a_search_holds_its_width(serve):
    served = serve(limits=Limits(sequences=8, idle_seconds=5.0))
    body = {"prompt": PROMPT, "max_tokens": 8, "tts": {"strategy": "best_of_n", "n": 9}}
    answer = served.post("/v1/completions", body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "tts")
    assert served.server.admission.running == 0


def test_tickets_count_by_client_and_in_all():
    admission = Admission(Limits(sequences=5, client_sequences=3))
    one, other = admission.admit(2, "a"), admission.admit(2, "b")
    with pytest.raises(APIError, match="of 5 sequences") as caught:
        admission.admit(2, "c")
    assert caught.value.status == 429
    one.widen(3)
    with pytest.raises(APIError, match="in use"):
        other.widen(3)
    assert admission.running == 5
    for ticket in (one, other, one):
        ticket.release()
    assert admission.running == 0
    admission.closed = True
    with pytest.raises(APIError, match="shutting down"):
        admission.admit(1, "a")
