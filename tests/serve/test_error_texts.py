"""The error for a wrong field: its name, what it got and what was expected, in JSON's terms."""

from __future__ import annotations

from typing import Any

import pytest
from serving import Served, make_chatty
from transformers import PreTrainedModel

C, CHAT = "/v1/completions", "/v1/chat/completions"
CUT = f"{10**19}..."  # the first 20 of more digits
HI = [{"role": "user", "content": "Hi"}]
PROMPTS = "a text, a list of texts, a list of token ids, or a list of such lists; none empty"


@pytest.fixture(scope="module")
def refusing(model: PreTrainedModel) -> Any:
    served = Served(make_chatty(model))
    yield served
    served.close()


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        (C, [], "the body: got a list of 0 items, expected an object"),
        (C, "x", "the body: got 'x', expected an object"),
        (C, {"prompt": "x", "n": 0}, "n: got 0, expected a number of at least 1"),
        (C, {"prompt": "x", "n": "2"}, "n: got '2', expected an integer"),
        (C, {"prompt": "x", "n": 1.5}, "n: got 1.5, expected an integer"),
        (C, {"prompt": "x", "n": True}, "n: got true, expected an integer"),
        (C, {"prompt": "x", "stream": 1}, "stream: got 1, expected true or false"),
        (C, {"prompt": "x", "top_p": 0}, "top_p: got 0, expected a number above 0.0"),
        (C, {"prompt": "x", "temperature": "hot"}, "temperature: got 'hot', expected a number"),
        (
            C,
            {"prompt": "x", "stop": 5},
            "stop: got 5, expected a text or a list of texts, none of them empty",
        ),
        (C, {"prompt": "x", "tts": "ets"}, "tts: got 'ets', expected an object"),
        (C, {"prompt": "x", "tts": {"strategy": 5}}, "tts.strategy: got 5, expected a text"),
        (C, {"prompt": "x", "extra_body": [1]}, "extra_body: got a list of 1 items, expected an object"),
        (C, {"prompt": "x", "logit_bias": "a"}, "logit_bias: got 'a', expected an object"),
        (
            C,
            {"prompt": "x", "stop_token_ids": {}},
            "stop_token_ids: got an object of 0 fields, expected a list",
        ),
        (C, {"prompt": "x", "n": 10**25}, f"n: got {10**25}, expected at most 128"),
        (C, {"prompt": "x", "max_tokens": 10**25}, f"max_tokens: got {10**25}, expected at most 8192"),
        (
            C,
            {"prompt": "x", "max_tokens": 10**99},
            f"max_tokens: got {CUT} of 100 digits, expected at most 8192",
        ),
        (
            C,
            {"prompt": "x", "top_k": -(10**99)},
            f"top_k: got -{10**18}... of 100 digits, expected a number of at least -1",
        ),
        (
            C,
            {"prompt": "x", "stop_token_ids": [10**25]},
            f"stop_token_ids: got token {10**25}, expected ids from 0 to 259",
        ),
        (C, {"prompt": [10**25]}, f"prompt: got the token id {10**25}, expected 0 to 259"),
        (
            C,
            {"prompt": "x", "logit_bias": {"9" * 70: 1}},
            f"logit_bias: got the key '{'9' * 60}'..., expected a token id",
        ),
        (
            C,
            {"prompt": "x", "logit_bias": {"1": 100.0000001}},
            "logit_bias: got 100.0000001 for token 1, expected -100 to 100",
        ),
        (
            C,
            {"prompt": "x", "tts": {"strategy": "ets", "n": 10**25}},
            f"tts.n: got {10**25}, expected at most 128",
        ),
        (
            C,
            {"prompt": "x", "tts": {"strategy": "ets", "n": -999}},
            "tts.n: got -999, expected at least -128",
        ),
        (
            C,
            {"prompt": "x", "tts": {"strategy": "self_calibration", "threshold": 2}},
            "tts.threshold: got 2, expected a finite number, 0 < tts.threshold <= 1",
        ),
        (
            CHAT,
            {"messages": HI, "max_completion_tokens": 9000},
            "max_completion_tokens: got 9000, expected at most 8192",
        ),
        (C, {"prompt": "x", "repeat_penalty": -1}, "repeat_penalty: got -1, expected a number above 0.0"),
        (C, {"prompt": 5}, "prompt: got 5, expected " + PROMPTS),
        (C, {"prompt": "x", "user": {}}, "user: got an object of 0 fields, expected a text"),
        (CHAT, {"messages": []}, "messages: got a list of 0 items, expected at least 1"),
        (CHAT, {"messages": [5]}, "messages[0]: got 5, expected an object"),
        (
            CHAT,
            {"messages": [{"role": "tool", "content": ""}]},
            "messages[0].role: got 'tool', expected 'system', 'developer', 'user' or 'assistant'",
        ),
    ],
)
def test_a_wrong_field_says_what_came_and_what_was_expected(
    refusing: Served, path: str, body: Any, message: str
) -> None:
    answer = refusing.post(path, body)
    assert (answer.status_code, answer.json()["error"]["message"]) == (400, message)


@pytest.mark.parametrize("value", ["a" * 5000, ["a"] * 5000, {str(i): i for i in range(150)}, 10**600])
@pytest.mark.parametrize("name", ["n", "user", "tts", "response_format"])
def test_what_came_is_told_in_a_line(refusing: Served, name: str, value: Any) -> None:
    answer = refusing.post(C, {"prompt": "x", name: value})
    if answer.status_code == 400:  # a long text is a user
        assert len(answer.json()["error"]["message"]) < 300
    else:
        assert (name, type(value)) == ("user", str)
