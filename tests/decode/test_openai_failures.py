"""OpenAICompletions against a server that is busy, wrong, slow or gone: tries, errors, cancelled calls."""

import asyncio
import select
import threading
import time

import pytest
from openai_server import PROMPT, choice, complete
from scripted import run_scripted, scorer
from tts_decode import Budget
from tts_decode.completions.completion import CompletionRequest
from tts_decode.completions.decoder import TextDecoder
from tts_decode.completions.openai import OpenAICompletions
from tts_decode.errors import EngineError
from tts_decode.search import best_of_n


def failing(times, status=503, headers=None):
    left = iter(range(times))

    def answer(body):
        if next(left, None) is None:
            return choice("4", "length", 1)
        return status, headers or {}, {"error": {"message": "overloaded " + "x" * 1000}}

    return answer


@pytest.mark.parametrize("status", [429, 500, 503])
def test_busy_servers_are_tried_again(server, status):
    server.answer = failing(2, status)
    assert complete(server).text == "4"
    assert len(server.bodies) == 3
    assert server.bodies[0] == server.bodies[2]


def test_waits_double_and_a_servers_retry_after_goes_before(server, monkeypatch):
    waits = []

    async def sleep(seconds):
        waits.append(seconds)

    monkeypatch.setattr("tts_decode.completions.json_post.asyncio.sleep", sleep)
    server.answer = failing(3)
    complete(server, backoff=0.5)
    for seconds in ("7", "9999", "Wed, 21 Oct 2026 07:28:00 GMT"):
        server.answer = failing(1, 429, {"Retry-After": seconds})
        complete(server, backoff=0.5)
    assert waits == [0.5, 1.0, 2.0, 7.0, 60.0, 0.5]


def test_the_limit_of_tries(server):
    server.answer = failing(9)
    with pytest.raises(EngineError, match=r"completions: status 503 \(tried 3 times\): .*overloaded") as info:
        complete(server, retries=2)
    assert len(server.bodies) == 3
    assert len(str(info.value)) < 400


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((400, {}, {"error": "no such model"}), "status 400: .*no such model"),
        ((401, {}, b"who are you"), "status 401: who are you"),
        ((200, {}, b'{"choices": [{"text": "a'), 'no JSON object: {"choices'),
        ((200, {}, b"[1, 2]"), "no JSON object"),
        ((200, {}, {"error": "out of memory"}), "no completion in the answer: .*out of memory"),
        ((200, {}, {"choices": []}), "no completion in the answer"),
        (choice("a", "abort"), "finish_reason 'abort'"),
        (choice("a", "stop"), "local_stops=True"),
        *(
            (
                (200, {}, {"choices": [{"text": "a", "finish_reason": "length"} | odd]}),
                "of an unknown form .*a",
            )
            for odd in (
                {"logprobs": {"content": [{"token": "a"}]}},
                {"logprobs": {"tokens": ["a"], "token_logprobs": ["likely"]}},
                {"logprobs": {"tokens": [97], "token_logprobs": [-1.0]}},
                {"logprobs": [-1.0]},
                {"token_ids": ["a"]},
                {"token_ids": 97},
            )
        ),
    ],
)
def test_wrong_answers_are_errors_at_once(server, answer, message):
    with pytest.raises(EngineError, match=message):
        complete(server, answer=answer, api_key="secret")
    assert len(server.bodies) == 1


def test_an_answer_cut_off_is_tried_again(server):
    whole = choice("4", "length", 1)
    answers = iter([(200, {"Content-Length": "500"}, b'{"choices'), whole])
    server.answer = lambda body: next(answers)
    assert complete(server).text == "4"


def test_a_server_that_hangs_or_is_gone(server):
    release = threading.Event()

    def answer(body):
        release.wait(10)
        return choice("4", "length", 1)

    server.answer = answer
    with pytest.raises(EngineError, match=r"no answer within 0\.05 s"):
        complete(server, timeout=0.05)
    assert len(server.bodies) <= 1  # it is not tried again; a busy machine may not have read it yet
    release.set()
    gone = OpenAICompletions("http://127.0.0.1:9", "tiny", retries=1, backoff=0.001)
    with pytest.raises(EngineError, match=r"127\.0\.0\.1:9/.*ConnectError.* \(tried 2 times\)"):
        asyncio.run(gone(CompletionRequest(PROMPT, 1)))


def test_a_cancelled_call_closes_its_connection(server):
    """The server's end of the connection closes at once, long before it answers or the timeout."""
    arrived, closed = threading.Event(), threading.Event()

    def answer(body):
        arrived.set()
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and not closed.is_set():
            if select.select([server.sockets[-1]], [], [], 0.1)[0] and not server.sockets[-1].recv(1):
                closed.set()
        return choice("4", "length", 1)

    server.answer = answer
    engine = OpenAICompletions(server.url, "tiny", timeout=60)

    async def search():
        root = await TextDecoder(engine).root(PROMPT)
        step = asyncio.ensure_future(root.step())
        await asyncio.to_thread(arrived.wait)
        step.cancel()
        with pytest.raises(asyncio.CancelledError):
            await step

    asyncio.run(search())
    assert closed.wait(10)


def test_a_failed_call_ends_the_search_and_leaves_nothing(server):
    """One of several calls in flight fails; the others are cancelled."""
    seen = threading.Barrier(4, timeout=10)

    def answer(body):
        if seen.wait() == 0:
            return 400, {}, {"error": "bad luck"}
        time.sleep(0.05)
        return choice("4", "length", 1)

    server.answer = answer
    decoder = TextDecoder(OpenAICompletions(server.url, "tiny"))
    budget = Budget(max_tokens=10_000)
    with pytest.raises(EngineError, match="bad luck"):
        run_scripted(decoder, best_of_n, PROMPT, budget=budget, n=4, scorer=scorer(len))
    assert decoder.stats().branches == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"base_url": "localhost:8000"}, "base_url: got scheme 'localhost'"),
        ({"base_url": "http://host:port/v1"}, "base_url: got what is no URL"),
        ({"base_url": "http:///v1"}, "base_url"),
        ({"base_url": "http://host/v1#part"}, "base_url: got a fragment"),
        ({"api_key": ""}, "api_key"),
        ({"api_key": "one", "base_url": "http://user:password@host"}, "api_key: got a key beside a user"),
        ({"base_url": "ftp://host/v1"}, "base_url"),
        ({"timeout": 0}, "timeout: got 0, expected a number of seconds > 0"),
        ({"retries": -1}, "retries: got -1, expected >= 0"),
        ({"max_connections": 0}, "max_connections: got 0, expected >= 1"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        OpenAICompletions(**{"base_url": "http://localhost/v1", "model": "tiny"} | arguments)
