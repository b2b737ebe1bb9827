"""OpenAICompletions against a server that the test starts: what it sends, and how it reads answers."""

import asyncio

import pytest
from openai_server import PROMPT, choice, complete
from scripted import counted, random_script, run_scripted, scorer, word_id, words
from tts_decode import SamplingParams, gather
from tts_decode.completions.completion import Completion, CompletionRequest
from tts_decode.completions.decoder import TextDecoder
from tts_decode.completions.openai import OpenAICompletions
from tts_decode.errors import EngineError, UnsupportedByEngineError
from tts_decode.search import rebase


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
