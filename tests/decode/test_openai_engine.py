"""OpenAICompletions against a server that the test starts: what it sends, how it reads answers and fails."""

import asyncio
import select
import threading
import time

import pytest
from openai_server import PROMPT, choice, complete
from scripted import counted, random_script, run_scripted, scorer, word_id, words
from tts_decode import Budget, SamplingParams, gather
from tts_decode.completions.completion import Completion, CompletionRequest
from tts_decode.completions.decoder import TextDecoder
from tts_decode.completions.openai import OpenAICompletions
from tts_decode.errors import EngineError, UnsupportedByEngineError
from tts_decode.search import best_of_n, rebase

# -- a server of each kind, with a script behind it


def vllm(script):
    """Tokens are words; logprobs, ids, and which stop string it was."""
    ask = counted(script)

    def answer(body):
        text, reason = ask(body["prompt"])
        pieces = words(text) + ["<eos>"] * (reason == "eos")
        fields = {"stop_reason": "\n" if reason == "stop_string" else None}
        if body.get("return_token_ids"):
            fields["token_ids"] = [word_id(piece) for piece in pieces]
        if "logprobs" in body:
            fields["logprobs"] = {"tokens": pieces, "token_logprobs": [-0.5] * len(pieces)}
        if reason == "stop_string" and not body.get("include_stop_str_in_output"):
            text = text.removesuffix("\n")
        return choice(text, "stop", len(pieces), **fields)

    return answer


def sglang(script):
    """Log-probabilities without ids; the stop string stays on request; an end is the id of its token."""
    ask = counted(script)

    def answer(body):
        text, reason = ask(body["prompt"])
        pieces = words(text)
        matched = "\n" if reason == "stop_string" else 2
        if reason == "stop_string" and not body.get("no_stop_trim"):
            text = text.removesuffix("\n")
        logprobs = {"tokens": pieces, "token_logprobs": [-0.5] * len(pieces)}
        return choice(text, "stop", len(pieces) + (matched == 2), matched_stop=matched, logprobs=logprobs)

    return answer


def silent(script):
    """Stops at what it is told to and says no more about it; tokens as in OpenAI's chat API."""
    ask = counted(script)

    def answer(body):
        text, reason = "", "stop_string"
        while reason == "stop_string" and not any(stop in text for stop in body.get("stop", ())):
            step, reason = ask(body["prompt"] + text)
            text += step
        for stop in body.get("stop", ()):
            text = text.split(stop)[0]
        content = [{"token": word, "logprob": -0.5} for word in words(text)]
        return choice(text, "stop", len(content), logprobs={"content": content})

    return answer


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (vllm, {}),
        (vllm, {"extensions": False}),
        (sglang, {}),
        (sglang, {"extensions": False}),
        (silent, {"local_stops": True}),
    ],
)
def test_a_search_over_each_kind_of_server_is_that_of_its_script(server, kind, options):
    """The script is the same for the k-th request with a prefix, so calls go one at a time."""

    def script(prefix, k):
        return random_script(4)(prefix, 0)

    server.answer = kind(script)
    sampling = SamplingParams(stop="\n", max_tokens=60)

    async def plain(request):
        text, reason = script(request.prompt, 0)
        return Completion(text, reason)

    def search(decoder):
        return run_scripted(
            decoder, rebase, PROMPT, sampling=sampling, n=3, scorer=scorer(lambda text: len(text) % 7 / 7)
        )

    decoder = TextDecoder(OpenAICompletions(server.url, "tiny", **options))
    result, expected = search(decoder), search(TextDecoder(plain))
    assert result.answer == expected.answer
    assert [c.text for c in result.candidates] == [c.text for c in expected.candidates]
    for candidate in result.candidates:
        count = len(words(candidate.text))
        assert len(candidate.tokens) == count + 1  # and the end
        assert candidate.logprob == pytest.approx(-0.5 * (count + (kind is vllm)))


def test_what_is_sent(server):
    answer = choice("4", "stop", 1, stop_reason=None)
    request = CompletionRequest(PROMPT, 20, 0.7, 0.9, ("\n", "!"), 12, True, 0, 0.05, 1.1)
    complete(server, request, answer, api_key="secret")
    plain = {
        "model": "tiny",
        "prompt": PROMPT,
        "max_tokens": 20,
        "temperature": 0.7,
        "top_p": 0.9,
        "seed": 12,
        "stop": ["\n", "!"],
        "logprobs": 1,
    }
    (body,) = server.bodies
    assert body | plain == body
    assert (body["top_k"], body["min_p"], body["repetition_penalty"]) == (-1, 0.05, 1.1)
    path, headers = server.headers[0]
    assert (path, headers["Authorization"]) == ("/v1/completions", "Bearer secret")

    complete(server, CompletionRequest(PROMPT, 20, stop=(";",), logprobs=False), answer, local_stops=True)
    assert "stop" not in server.bodies[1]
    assert "logprobs" not in server.bodies[1]

    penalised = CompletionRequest(
        PROMPT, 20, frequency_penalty=0.5, presence_penalty=-1.0, logit_bias=((5, -100.0), (7, 2.5))
    )
    for extensions in (True, False):  # they are OpenAI's own
        complete(server, penalised, answer, extensions=extensions)
        body = server.bodies.pop()
        assert (body["frequency_penalty"], body["presence_penalty"]) == (0.5, -1.0)
        assert body["logit_bias"] == {"5": -100.0, "7": 2.5}
    assert "frequency_penalty" not in server.bodies[0]
    assert "logit_bias" not in server.bodies[0]

    with pytest.raises(UnsupportedByEngineError, match="top_k"):
        complete(server, CompletionRequest(PROMPT, 20, top_k=5), answer, extensions=False)
    complete(server, CompletionRequest(PROMPT, 20), answer, extensions=False)
    assert set(server.bodies[2]) == set(plain) - {"stop"}


# -- reading answers


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        # the stop string: kept, put back, as the text of a token that carries more
        (choice("a;", "stop", 2, stop_reason=";"), Completion("a;", "stop_string", (-1, -1))),
        (choice("a", "stop", 2, stop_reason=";"), Completion("a;", "stop_string", (-1, -1))),
        (
            choice(
                "a", "stop", stop_reason=";", logprobs={"tokens": ["a", "; b"], "token_logprobs": [-1, -2]}
            ),
            Completion("a;", "stop_string", (-1, -1), (-1, -2), (), ("a", ";")),
        ),
        (choice("a;", "stop", 2), Completion("a;", "stop_string", (-1, -1))),
        # an end: listed, or not
        (
            choice(
                "a",
                "stop",
                stop_reason=None,
                token_ids=[7, 2],
                logprobs={"tokens": ["a", "</s>"], "token_logprobs": [-1, -2]},
            ),
            Completion("a", "eos", (7, 2), (-1, -2), (), ("a", "")),
        ),
        (
            choice("a", "stop", matched_stop=2, logprobs={"tokens": ["a"], "token_logprobs": [-1]}),
            Completion("a", "eos", (-1, -1), (-1, 0), (), ("a", "")),
        ),
        # texts of tokens that do not spell the text are left out, and so are numbers that do not match
        (
            choice("é", "length", logprobs={"tokens": ["\ufffd", "\ufffd"], "token_logprobs": [-1, -2]}),
            Completion("é", "length", (-1, -1), (-1, -2)),
        ),
        (
            choice("ab", "length", 2, token_ids=[3, 4], logprobs={"tokens": ["ab"], "token_logprobs": [-1]}),
            Completion("ab", "length", (3, 4)),
        ),
        (choice("ab", "length", 2, logprobs=None), Completion("ab", "length", (-1, -1))),
        (choice("ab", "length"), Completion("ab", "length")),
    ],
)
def test_answers_are_read(server, answer, expected):
    assert complete(server, answer=answer) == expected


@pytest.mark.parametrize(
    ("text", "pieces", "expected"),
    [
        ("a; b; c", None, Completion("a;", "stop_string", (-1,) * 5)),  # all five are paid
        (
            "a; b; c",
            ["a", "; b", "; c"],
            Completion("a; b", "stop_string", (-1, -1), (-1, -1), (), ("a", "; b")),
        ),
        ("abc", ["a", "bc"], Completion("abc", "eos", (-1,) * 3, (-1, -1, 0), (), ("a", "bc", ""))),
    ],
)
def test_stop_strings_found_here(server, text, pieces, expected):
    logprobs = {"tokens": pieces, "token_logprobs": [-1] * len(pieces)} if pieces else None
    answer = choice(text, "stop", 5, logprobs=logprobs)
    assert complete(server, answer=answer, local_stops=True) == expected


def test_log_probabilities_of_given_texts(server):
    """Echoed tokens are those of the whole text, one of them across the border, and a generated one."""
    tokens = {"2 + 2 = 4": ["<s>", "2 +", " 2 ", "= 4"], "2 + 2 = five": ["<s>", "2 +", " 2 ", "=", " five"]}

    def answer(body):
        pieces = [*tokens[body["prompt"]], "!"]
        numbers = [None, *(-float(i) for i in range(1, len(pieces)))]
        logprobs = {"tokens": pieces, "token_logprobs": numbers}
        assert body["echo"]
        return choice(body["prompt"] + "!", "length", 1, logprobs=logprobs)

    server.answer = answer
    engine = OpenAICompletions(server.url, "tiny")

    async def search():
        root = await TextDecoder(engine, score=engine.score).root("2 + 2 =")
        (kept,) = root.fork()
        rows = await gather(root.logprobs_of(" 4"), root.logprobs_of(" five"), kept.extend(" five"))
        assert (root.length, kept.text, kept.length) == (1, " five", 2)
        return [row.tolist() for row in rows]

    assert asyncio.run(search()) == [[-3.0], [-4.0], [-4.0]]

    server.answer = lambda body: choice(" and", "length", 1)
    with pytest.raises(EngineError, match=r"no log-probabilities of tokens that end with ' 4'"):
        asyncio.run(engine.score("2 + 2 =", [" 4"]))

    for usage in ([1], {"completion_tokens": "one"}, {"completion_tokens": None}):
        server.answer = lambda body, usage=usage: (200, {}, choice(" 4", "length")[2] | {"usage": usage})
        with pytest.raises(EngineError, match=r"usage of an unknown form .*usage"):
            asyncio.run(engine.score("2 + 2 =", [" 4"]))


# -- failures


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
    assert len(server.bodies) == 1
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
        ({"timeout": 0}, "timeout=0"),
        ({"retries": -1}, "retries=-1"),
        ({"max_connections": 0}, "max_connections=0"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        OpenAICompletions(**{"base_url": "http://localhost/v1", "model": "tiny"} | arguments)
