"""OpenAICompletions against a server that is not trusted: secrets, sizes, times, answers that cannot be."""

import asyncio
import base64
import gzip
import json
import logging
import time
import traceback
import tracemalloc
from urllib.parse import quote, quote_plus

import pytest
from openai_server import PROMPT, choice, complete
from tts_decode import gather
from tts_decode.completions.completion import CompletionRequest
from tts_decode.completions.openai import OpenAICompletions
from tts_decode.errors import EngineError

KEY = "sk-4f9a77c1e2"


@pytest.mark.parametrize(
    ("options", "user", "query", "secrets"),
    [
        ({"api_key": KEY}, "", "", [KEY]),
        ({}, "me:pa%2Fss-word@", "", ["pa/ss-word", "pa%2Fss-word", "bWU6cGEvc3Mtd29yZA=="]),
        ({"api_key": KEY}, "", "?api-key=hid%20den&api-version=1", [KEY, "hid den", "hid%20den", "hid+den"]),
    ],
)
@pytest.mark.parametrize("failure", ["status", "form", "gone", "slow", "none"])
def test_secrets_are_in_no_message_and_no_log(server, caplog, options, user, query, secrets, failure):
    """The server sends all back that it got, in body and headers."""
    caplog.set_level(logging.DEBUG)

    def answer(body):
        path, headers = server.headers[-1]
        echo = {"X-Echo": headers.get("Authorization", "") + path}
        told = {"told": [path, headers, *secrets]}
        if failure == "slow":
            time.sleep(0.5)
        if failure in ("status", "form"):
            return 200 if failure == "form" else 401, echo, told
        status, _, good = choice("4", "length", 1)
        return status, echo, good

    server.answer = answer
    host = "http://" + user + ("127.0.0.1:9" if failure == "gone" else server.url.removeprefix("http://"))
    engine = OpenAICompletions(
        host + query, "tiny", retries=0, timeout=0.1 if failure == "slow" else 10, **options
    )
    texts = [repr(engine), str(vars(engine)), engine.url]
    if failure == "none":
        assert asyncio.run(engine(CompletionRequest(PROMPT, 16))).text == "4"
    else:
        with pytest.raises(EngineError) as info:
            asyncio.run(engine(CompletionRequest(PROMPT, 16)))
        texts += traceback.format_exception(info.value)
        assert "/completions" + ("?api-key=***&api-version=***" if query else "") in str(info.value)
    texts += [record.getMessage() for record in caplog.records]
    for text in texts:
        for secret in secrets:
            assert secret not in text
    if failure != "gone":
        path, headers = server.headers[0]
        assert path == ("/v1/completions" if not query else "/v1/completions" + query)
        login = "Basic " + base64.b64encode(b"me:pa/ss-word").decode()
        assert headers["Authorization"] == (login if user else f"Bearer {KEY}")


@pytest.mark.parametrize(
    ("secret", "query"),
    [
        ('k"e\\y/<1>', ""),
        ("päss wörd", "päss+wörd"),
        ("päss wörd", "p%c3%a4ss%20w%c3%b6rd"),
        ("a/bc+def", "a%2fbc%2Bdef"),
        ("a/bc+def", "a/bc%2bdef"),
    ],
)
def test_a_secret_is_known_however_it_is_spelled(server, caplog, secret, query):
    """In the log of the client, and in what the server says: JSON of JSON, and values of a wrong type."""
    caplog.set_level(logging.DEBUG)
    ascii_only, texts = json.dumps(secret), json.dumps(secret, ensure_ascii=False)
    spelled = [secret, quote(secret), quote_plus(secret), ascii_only[1:-1], texts[1:-1], query or secret]
    spelled += [text.replace("/", "\\/") for text in spelled] + [json.dumps(ascii_only)[3:-3]]
    long = "x" * 180 + secret  # cut off in the middle of it
    answers = [(401, {}, text.encode()) for text in spelled]
    answers += [choice(secret, "stop", stop_reason=text) for text in (secret, long, [secret])]
    answers += [choice(secret, "length", token_ids=[text]) for text in (secret, long)]
    answers += [choice(secret, text) for text in (secret, long)]
    for url, options in (
        [(f"?key={query}", {}), (f"?{query}", {}), (f"?v=1&{query}&w=2", {})]
        if query
        else [("", {"api_key": secret})]
    ):
        engine = OpenAICompletions(server.url + url, "tiny", retries=0, **options)
        for answer in answers:
            server.answer = lambda body, answer=answer: answer
            with pytest.raises(EngineError) as info:
                asyncio.run(engine(CompletionRequest(PROMPT, 16)))
            told = "".join(traceback.format_exception(info.value)) + engine.url
            told += "".join(record.getMessage() for record in caplog.records)
            assert not [text for text in spelled if text in told or repr(text)[1:-1] in told]
            assert secret[:8] not in str(info.value)
            caplog.clear()


def test_messages_hold_nothing_that_a_terminal_obeys(server):
    for answer in ((500, {}, b"\x1b[2J\x07\xc2\x9b31m"), choice("a", "\x1b]0;x\x07\x7f")):
        with pytest.raises(EngineError) as info:
            complete(server, answer=answer, retries=0)
        assert str(info.value).isprintable()


@pytest.mark.parametrize("key", [KEY + "\n", KEY + "\r\nX: y", KEY + "\u00e9", " " + KEY, KEY.encode(), 17])
@pytest.mark.parametrize("url", ["http://localhost", "http://me:" + KEY + "@localhost"])
def test_a_key_that_no_header_holds_is_refused_without_naming_it(key, url):
    with pytest.raises((TypeError, ValueError), match="api_key: got") as info:
        OpenAICompletions(url, "tiny", key)
    assert KEY not in "".join(traceback.format_exception(info.value)).replace(repr(key), "")


@pytest.mark.parametrize(
    "url", ["ftp://me:{}@host", "http://me:{}@", "me:{}@host", "http://me:{}@host:port", "h\n{}"]
)
def test_a_wrong_url_is_refused_without_its_password(url):
    with pytest.raises(ValueError, match="base_url: got") as info:
        OpenAICompletions(url.format(KEY), "tiny")
    assert KEY not in str(info.value)


@pytest.mark.parametrize(
    ("usage", "message"),
    [
        (300_000_000, "integer from 0 to 17"),
        (-1, "integer from 0 to 17"),
        (2.0, "expected an integer"),
        (True, "expected an integer"),
        ("2", "expected an integer"),
    ],
)
def test_a_number_of_tokens_is_within_what_was_asked(server, usage, message):
    with pytest.raises(EngineError, match=message):
        complete(server, answer=(200, {}, choice("a", "length")[2] | {"usage": {"completion_tokens": usage}}))


@pytest.mark.parametrize(
    "number", ["0.5", "1e400", "-1e400", "NaN", "Infinity", "true", '"-1"', "9" * 5000, "-1" + "0" * 400]
)
def test_log_probabilities_are_finite_and_at_most_0(server, number):
    body = '{"choices": [{"text": "a", "finish_reason": "length", "logprobs": {"tokens": ["a"], '
    with pytest.raises(EngineError, match=r"log-probability|no JSON object"):
        complete(server, answer=(200, {}, (body + f'"token_logprobs": [{number}]}}}}]}}').encode()))


def test_a_rounding_above_0_counts_as_0(server):
    logprobs = {"tokens": ["a"], "token_logprobs": [1e-7]}
    assert complete(server, answer=choice("a", "length", logprobs=logprobs)).logprobs == (0.0,)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (choice("a", "stop", stop_reason="?"), "a stop string that was not asked for"),
        (choice("a", "stop", matched_stop="x" * 100_000), "a stop string that was not asked for"),
        *((choice("a", "stop", stop_reason=other), "stop reason") for other in (["?"], {}, True, 2.5)),
        (choice("a", {"a": "x" * 100_000}), "finish_reason"),
        (choice("a", "length", token_ids=[-2]), "integer from -1"),
        (choice("a", "length", token_ids=[2**40]), "integer from -1"),
        (choice("a\ud800", "length"), "surrogate"),
        ((200, {}, b"[" * 200_000), "no JSON object"),
        ((200, {}, b'{"choices":' + b'{"a":' * 200_000), "no JSON object"),
        *((choice("a", "length", more=json.loads("[" * n + "]" * n)), "nested deeply") for n in (40, 900)),
        ((200, {}, b" " * (3 << 20) + b"{}"), "larger than"),
        ((500, {}, b"x" * (3 << 20)), "status 500"),
        ((302, {"Location": "http://127.0.0.1:9/"}, b""), "status 302"),
    ],
)
def test_answers_that_cannot_be_are_errors(server, answer, message):
    with pytest.raises(EngineError, match=message) as info:
        complete(server, answer=answer, retries=0)
    assert len(str(info.value)) < 500


@pytest.mark.parametrize("status", [200, 401])
@pytest.mark.parametrize("times", [1, 2])
def test_a_compressed_answer_is_refused_before_it_is_unpacked(server, status, times):
    """Packed twice, 64 MiB are some hundred bytes."""
    bomb = b" " * (64 << 20)
    for _ in range(times):
        bomb = gzip.compress(bomb)
    coding = ", ".join(["gzip"] * times)
    tracemalloc.start()
    try:
        with pytest.raises(EngineError, match=f"Content-Encoding '{coding}', which was not asked for"):
            complete(server, answer=(status, {"Content-Encoding": coding}, bomb), retries=0)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8 << 20


def test_the_time_limit_holds_for_the_whole_call(server):
    """A server that sends a byte now and then, and one that is busy each time."""
    began = time.monotonic()
    with pytest.raises(EngineError, match=r"no answer within 0\.3 s"):
        complete(server, answer=(200, {"Content-Length": "1000", "X-Pause": "0.1"}, b" " * 1000), timeout=0.3)
    with pytest.raises(EngineError, match=r"no answer within 0\.3 s"):
        complete(server, answer=(503, {"Retry-After": "1"}, b"busy"), timeout=0.3, retries=100)
    assert time.monotonic() - began < 10


def test_calls_wait_for_a_connection_without_using_up_their_time(server):
    def answer(body):
        time.sleep(0.15)
        return choice("4", "length", 1)

    server.answer = answer
    engine = OpenAICompletions(server.url, "tiny", timeout=0.4, max_connections=1)

    async def calls():
        return await gather(engine(CompletionRequest(PROMPT, 16)) for _ in range(5))

    for _ in range(2):  # an engine serves one event loop after another
        assert [done.text for done in asyncio.run(calls())] == ["4"] * 5
