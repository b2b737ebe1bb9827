"""Requests that a server must refuse: each gets an error of the protocol, which names the field."""

import gzip
import re

import pytest
from serving import Served, make_chatty
from tts_decode.serve.config import Limits

LIMITS = Limits(
    body_bytes=20000,
    prompts=4,
    prompt_tokens=100,
    choices=8,
    max_tokens=50,
    search_tokens=500,
    stops=4,
    stop_characters=20,
    logprobs=5,
    bias_tokens=10,
    schema_bytes=1000,
    sequences=16,
    idle_seconds=5.0,
)
C, CHAT = "/v1/completions", "/v1/chat/completions"
USER = [{"role": "user", "content": "Hi"}]
DEEP = '{"a":' * 3000 + "1" + "}" * 3000


def tts(**options):
    return {"prompt": "x", "tts": {"strategy": "beam_search", **options}}


# path, body, status, param
CASES = [
    # of another kind than an object
    (C, [], 400, None),
    (C, "text", 400, None),
    # prompts
    (C, {}, 400, "prompt"),
    (C, {"prompt": None}, 400, "prompt"),
    (C, {"prompt": ""}, 400, "prompt"),
    (C, {"prompt": []}, 400, "prompt"),
    (C, {"prompt": [[]]}, 400, "prompt"),
    (C, {"prompt": 7}, 400, "prompt"),
    (C, {"prompt": {"a": 1}}, 400, "prompt"),
    (C, {"prompt": ["a", [1]]}, 400, "prompt"),
    (C, {"prompt": [True]}, 400, "prompt"),
    (C, {"prompt": [1.0]}, 400, "prompt"),
    (C, {"prompt": [-1]}, 400, "prompt"),
    (C, {"prompt": [260]}, 400, "prompt"),
    (C, {"prompt": [10**300]}, 400, "prompt"),
    (C, {"prompt": ["a"] * 5}, 400, "prompt"),
    (C, {"prompt": "a" * 101}, 400, "prompt"),
    (C, {"prompt": [1] * 101}, 400, "prompt"),
    # numbers
    (C, {"prompt": "x", "n": 0}, 400, "n"),
    (C, {"prompt": "x", "n": 9}, 400, "n"),
    (C, {"prompt": "x", "n": 10**30}, 400, "n"),
    (C, {"prompt": "x", "n": "1"}, 400, "n"),
    (C, {"prompt": "x", "n": True}, 400, "n"),
    (C, {"prompt": "x", "n": 1.5}, 400, "n"),
    (C, {"prompt": ["a", "b", "c"], "n": 8}, 400, "n"),  # 24 sequences of 16
    (C, {"prompt": "x", "best_of": 9}, 400, "best_of"),
    (C, {"prompt": "x", "n": 3, "best_of": 2}, 400, "best_of"),
    (C, {"prompt": "x", "n": 1, "best_of": 2, "stream": True}, 400, "best_of"),
    (C, {"prompt": "x", "max_tokens": 51}, 400, "max_tokens"),
    (C, {"prompt": "x", "max_tokens": -1}, 400, "max_tokens"),
    (C, {"prompt": "x", "max_tokens": 0}, 400, "max_tokens"),
    (C, {"prompt": "x", "temperature": -0.1}, 400, "temperature"),
    (C, {"prompt": "x", "temperature": 1e300}, 400, "temperature"),
    (C, {"prompt": "x", "temperature": "hot"}, 400, "temperature"),
    (C, {"prompt": "x", "top_p": 0}, 400, "top_p"),
    (C, {"prompt": "x", "top_p": 1.1}, 400, "top_p"),
    (C, {"prompt": "x", "top_k": -2}, 400, "top_k"),
    (C, {"prompt": "x", "min_p": 2}, 400, "min_p"),
    (C, {"prompt": "x", "repetition_penalty": 0}, 400, "repetition_penalty"),
    (C, {"prompt": "x", "repetition_penalty": 2, "repeat_penalty": 3}, 400, "repeat_penalty"),
    (C, {"prompt": "x", "frequency_penalty": 2.1}, 400, "frequency_penalty"),
    (C, {"prompt": "x", "presence_penalty": -2.1}, 400, "presence_penalty"),
    (C, {"prompt": "x", "seed": 1 << 64}, 400, "seed"),
    (C, {"prompt": "x", "seed": "a"}, 400, "seed"),
    (C, {"prompt": "x", "logprobs": 6}, 400, "logprobs"),
    (C, {"prompt": "x", "logprobs": True}, 400, "logprobs"),
    # stops and biases
    (C, {"prompt": "x", "stop": ""}, 400, "stop"),
    (C, {"prompt": "x", "stop": [""]}, 400, "stop"),
    (C, {"prompt": "x", "stop": [1]}, 400, "stop"),
    (C, {"prompt": "x", "stop": ["a"] * 5}, 400, "stop"),
    (C, {"prompt": "x", "stop": "a" * 21}, 400, "stop"),
    (C, {"prompt": "x", "stop_token_ids": [260]}, 400, "stop_token_ids"),
    (C, {"prompt": "x", "no_stop_trim": True, "include_stop_str_in_output": False}, 400, "no_stop_trim"),
    (C, {"prompt": "x", "no_stop_trim": False, "include_stop_str_in_output": True}, 400, "no_stop_trim"),
    (C, {"prompt": "x", "stop_token_ids": [1] * 5}, 400, "stop_token_ids"),
    (C, {"prompt": "x", "logit_bias": {"260": 1}}, 400, "logit_bias"),
    (C, {"prompt": "x", "logit_bias": {"a": 1}}, 400, "logit_bias"),
    (C, {"prompt": "x", "logit_bias": {"-1": 1}}, 400, "logit_bias"),
    (C, {"prompt": "x", "logit_bias": {"1": 101}}, 400, "logit_bias"),
    (C, {"prompt": "x", "logit_bias": {str(i): 1 for i in range(11)}}, 400, "logit_bias"),
    (C, {"prompt": "x", "logit_bias": [1]}, 400, "logit_bias"),
    # what is not there
    (C, {"prompt": "x", "suffix": "y"}, 400, "suffix"),
    (C, {"prompt": "x", "tools": []}, 400, "tools"),
    (C, {"prompt": "x", "what_is_this": 1}, 400, "what_is_this"),
    (C, {"prompt": "x", "__class__": 1}, 400, "__class__"),
    (C, {"prompt": "x", "stream_options": {"include_usage": True}}, 400, "stream_options"),
    (C, {"prompt": "x", "stream": True, "stream_options": {"x": 1}}, 400, "stream_options.x"),
    (C, {"prompt": "x", "model": "another"}, 404, "model"),
    (C, {"prompt": "x", "response_format": {"type": "xml"}}, 400, "response_format.type"),
    (C, {"prompt": "x", "response_format": {"type": "json_schema"}}, 400, "response_format.json_schema"),
    # chats
    (CHAT, {}, 400, "messages"),
    (CHAT, {"messages": []}, 400, "messages"),
    (CHAT, {"messages": "Hi"}, 400, "messages"),
    (CHAT, {"messages": [1]}, 400, "messages[0]"),
    (CHAT, {"messages": [{"role": "user"}]}, 400, "messages[0].content"),
    (CHAT, {"messages": [{"content": "Hi"}]}, 400, "messages[0].role"),
    (CHAT, {"messages": [{"role": "tool", "content": "Hi"}]}, 400, "messages[0].role"),
    (CHAT, {"messages": [{"role": "user", "content": 7}]}, 400, "messages[0].content"),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "messages[0].content"),
    (CHAT, {"messages": [{"role": "user", "content": "Hi", "name": "me"}]}, 400, "messages[0].name"),
    (CHAT, {"messages": [*USER, {"role": "user", "content": "a" * 101}]}, 400, "messages"),
    (CHAT, {"messages": USER, "tools": [{"type": "function"}]}, 400, "tools"),
    (CHAT, {"messages": USER, "tool_choice": "required"}, 400, "tool_choice"),
    (CHAT, {"messages": USER, "functions": [{}]}, 400, "functions"),
    (CHAT, {"messages": USER, "audio": {}}, 400, "audio"),
    (CHAT, {"messages": USER, "modalities": ["text", "audio"]}, 400, "modalities"),
    (CHAT, {"messages": USER, "reasoning_effort": "high"}, 400, "reasoning_effort"),
    (CHAT, {"messages": USER, "prediction": {}}, 400, "prediction"),
    (CHAT, {"messages": USER, "web_search_options": {}}, 400, "web_search_options"),
    (CHAT, {"messages": USER, "store": True}, 400, "store"),
    (CHAT, {"messages": USER, "best_of": 2}, 400, "best_of"),
    (CHAT, {"messages": USER, "top_logprobs": 2}, 400, "top_logprobs"),
    (CHAT, {"messages": USER, "logprobs": True, "top_logprobs": 6}, 400, "top_logprobs"),
    (CHAT, {"messages": USER, "max_tokens": 3, "max_completion_tokens": 4}, 400, "max_completion_tokens"),
    (CHAT, {"messages": USER, "max_completion_tokens": 0}, 400, "max_completion_tokens"),
    (CHAT, {"messages": USER, "continue_final_message": True}, 400, "continue_final_message"),
    (
        CHAT,
        {"messages": USER, "continue_final_message": True, "add_generation_prompt": True},
        400,
        "continue_final_message",
    ),
    (C, {"prompt": "x", "logit_bias": {"01": 1, "1": 2}}, 400, "logit_bias"),
    (C, {"prompt": "x", "logit_bias": {"\u0661": 1}}, 400, "logit_bias"),
    (C, {"prompt": "x", "logit_bias": {"1": None}}, 400, "logit_bias.1"),
    (
        C,
        {"prompt": "x", "stream": True, "stream_options": {"include_obfuscation": True}},
        400,
        "stream_options.include_obfuscation",
    ),
    (
        C,
        {"prompt": "x", "response_format": {"type": "json_schema", "json_schema": {"schema": 5}}},
        400,
        "response_format.json_schema.schema",
    ),
    (
        C,
        {
            "prompt": "x",
            "response_format": {"type": "json_schema", "json_schema": {"schema_": 5, "schema": {}}},
        },
        400,
        "response_format.json_schema.schema_",
    ),
    # searches
    (C, {"prompt": "x", "extra_body": [1]}, 400, "extra_body"),
    (C, {"prompt": "x", "extra_body": {"extra_body": {}}}, 400, "extra_body.extra_body"),
    (C, {"prompt": "x", "n": 1, "extra_body": {"n": 2}}, 400, "extra_body.n"),
    (C, {"prompt": "x", "extra_body": {"nn": 2}}, 400, "nn"),
    (C, {"prompt": "x", "extra_body": {"n": 0}}, 400, "n"),
    (C, {"prompt": "x", "tts": {}}, 400, "tts.strategy"),
    (C, {"prompt": "x", "tts": {"strategy": "os.system"}}, 400, "tts.strategy"),
    (C, tts(scorer="/etc/passwd"), 400, "tts.scorer"),
    (C, tts(scorer="class:/tmp"), 400, "tts.scorer"),
    (C, tts(n=9), 400, "tts.n"),
    (C, tts(n="4"), 400, "tts.n"),
    (C, tts(n=0), 400, "tts.n"),
    (C, tts(agg_strategy="__import__('os')"), 400, "tts.agg_strategy"),
    (C, tts(journal="/tmp/x"), 400, "tts.journal"),
    (C, tts(embed="os.system"), 400, "tts.embed"),
    (C, tts(max_step_tokens=51), 400, "tts.max_step_tokens"),
    (C, tts(step_stop=["a" * 21]), 400, "tts.step_stop"),
    (C, tts(budget_tokens=501), 400, "tts.budget_tokens"),
    (C, tts() | {"n": 2}, 400, "n"),
    (C, tts() | {"stop": "."}, 400, "stop"),
    (C, tts() | {"include_stop_str_in_output": True}, 400, "include_stop_str_in_output"),
    (C, tts() | {"no_stop_trim": True}, 400, "no_stop_trim"),
    (
        C,
        {"prompt": "x", "response_format": {"type": "json_object", "json_schema": {"schema": {}}}},
        400,
        "response_format.json_schema",
    ),
    (
        C,
        {"prompt": "x", "response_format": {"type": "text", "json_schema": {"schema": {}}}},
        400,
        "response_format.json_schema",
    ),
    (C, tts() | {"logprobs": 1}, 400, "logprobs"),
    (
        C,
        {"prompt": "x", "tts": {"strategy": "ab_mcts", "refine_prompt": "{question.__class__}"}},
        400,
        "tts.refine_prompt",
    ),
]


INSIDE = "Traceback", "Options", "instance", "site-packages", "/work", "/tmp/", ".py", "object at 0x"
TELLS_NO_VALUE = re.compile("missing|unknown")


@pytest.fixture(scope="module")
def refusing(model):
    served = Served(make_chatty(model), limits=LIMITS)
    yield served
    served.assert_empties()
    served.close()


def refused(answer, status, param):
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["param"] == param
    assert param is None or param in error["message"]
    for told in INSIDE:
        assert told not in answer.text
    assert len(answer.content) < 4000
    if error["code"] == "invalid_value" and not TELLS_NO_VALUE.search(error["message"]):
        assert ": got " in error["message"], error["message"]


@pytest.mark.parametrize(("path", "body", "status", "param"), CASES)
def test_a_refused_request_names_its_field(refusing, path, body, status, param):
    refused(refusing.post(path, body), status, param)


# Against the limits that a server has where none are named.
LARGE = [
    (C, {"prompt": "x", "n": 129}, 400, "n"),
    (C, {"prompt": ["x"] * 65}, 400, "prompt"),
    (C, {"prompt": ["x"] * 3, "n": 100, "max_tokens": 1}, 400, "n"),
    (C, {"prompt": "x", "max_tokens": 8193}, 400, "max_tokens"),
    (C, {"prompt": "x" * 3_000_000}, 400, "prompt"),
    (C, {"prompt": ["x" * 60_000] * 60}, 400, "prompt"),
    (C, {"prompt": [1] * 1_000_000}, 400, "prompt"),
    (C, {"prompt": "x", "stop": ["a"] * 17}, 400, "stop"),
    (C, {"prompt": "x", "stop": "a" * 257}, 400, "stop"),
    (C, {"prompt": "x", "stop_token_ids": [1] * 100_000}, 400, "stop_token_ids"),
    (C, {"prompt": "x", "logit_bias": {str(i): 1 for i in range(100_000)}}, 400, "logit_bias"),
    (C, {"prompt": "x", "logprobs": 21}, 400, "logprobs"),
    (C, {"prompt": "x", "user": "x" * 4_300_000}, 413, None),
    (CHAT, {"messages": [{"role": "user", "content": "x"}] * 5000}, 400, "messages"),
    (CHAT, {"messages": [{"role": "user", "content": "x" * 1000}] * 4000}, 400, "messages"),
    (C, {"prompt": "x", "tts": {"strategy": "beam_search", "n": 129}}, 400, "tts.n"),
    (
        C,
        {"prompt": "x", "tts": {"strategy": "beam_search", "budget_tokens": 1 << 18}},
        400,
        "tts.budget_tokens",
    ),
]


@pytest.mark.parametrize(("path", "body", "status", "param"), LARGE, ids=range(len(LARGE)))
def test_a_server_as_it_comes_refuses_what_is_too_large(served, path, body, status, param):
    refused(served.post(path, body), status, param)


RAW = [
    (b"", 400),
    (b"null", 400),
    (b"{", 400),
    (b"\xff\xfe", 400),
    (b'{"prompt": NaN}', 400),
    (b'{"prompt": "x", "temperature": 1e999}', 400),
    (b'{"prompt": "x", "prompt": "y"}', 400),
    (b'{"prompt": "\\ud800"}', 400),
    (DEEP.encode(), 413 if len(DEEP) > 20000 else 400),
    (b'{"prompt": "x", "seed": ' + b"9" * 5000 + b"}", 400),
    (b'{"prompt": "' + b"x" * 20000 + b'"}', 413),
    (b"[" * 10000, 400),
]


NULLS = [
    {"scorer": None},
    {"step_stop": None, "max_step_tokens": None, "budget_tokens": None},
    {"n": None, "beam_width": None},
]


@pytest.mark.parametrize("options", NULLS)
def test_null_is_the_default_in_a_search_too(refusing, options):
    body = {"prompt": "x", "seed": 1, "max_tokens": 8}
    given = {"strategy": "beam_search", "n": 2, "beam_width": 1} | options
    left = {name: value for name, value in given.items() if value is not None}
    one, other = (refusing.complete(**body, tts=tts) for tts in (given, left))
    assert one["choices"] == other["choices"]


@pytest.mark.parametrize(("body", "status"), RAW, ids=range(len(RAW)))
def test_a_body_that_is_no_json(refusing, body, status):
    answer = refusing.http.post(C, content=body, headers={"Content-Type": "application/json"})
    refused(answer, status, None)


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""]
)
def test_a_body_of_another_type_is_refused_as_a_form_of_a_web_page_is(refusing, kind):
    answer = refusing.http.post(C, content=b'{"prompt": "x"}', headers={"Content-Type": kind})
    refused(answer, 415, None)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", C, 405),
        ("DELETE", "/v1/models", 405),
        ("GET", "/", 404),
        ("GET", "/docs", 404),
        ("GET", "/openapi.json", 404),
        ("POST", "/v1/embeddings", 404),
        ("GET", "/v1/tts/trees/../../etc/passwd", 404),
        ("GET", "/v1/tts/trees/nothing", 404),
        ("GET", "/v1/models/" + "x" * 5000, 404),
    ],
)
def test_other_paths_and_methods(refusing, method, path, status):
    answer = refusing.http.request(method, path)
    assert answer.status_code == status
    assert answer.json()["error"].keys() == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", C, {"POST"}),
        ("PUT", CHAT, {"POST"}),
        ("POST", "/v1/models", {"GET", "HEAD"}),
        ("DELETE", "/v1/models/tiny", {"GET", "HEAD"}),
        ("POST", "/health", {"GET", "HEAD"}),
    ],
)
def test_a_method_that_is_not_served_is_told_which_are(refusing, method, path, allowed):
    answer = refusing.http.request(method, path)
    assert (answer.status_code, set(answer.headers["allow"].split(", "))) == (405, allowed)


@pytest.mark.parametrize("path", ["/health", "/v1/models", "/metrics"])
def test_a_head_has_no_body(refusing, path):
    answer = refusing.http.head(path)
    assert (answer.status_code, answer.content) == (200, b"")


def test_a_packed_body_is_named(refusing):
    data = gzip.compress(b'{"prompt": "x", "max_tokens": 1}')
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    answer = refusing.http.post(C, content=data, headers=headers)
    refused(answer, 415, None)
    assert "Content-Encoding: got 'gzip'" in answer.json()["error"]["message"]
    assert answer.headers["accept-encoding"] == "identity"
    plain = {**headers, "Content-Encoding": "identity"}
    content = b'{"prompt": "x", "max_tokens": 1}'
    assert refusing.http.post(C, content=content, headers=plain).status_code == 200


def test_the_two_names_of_the_kept_stop_may_agree(refusing):
    body = {"prompt": "x", "stop": ["a"], "no_stop_trim": True, "include_stop_str_in_output": True}
    assert refusing.post(C, body).status_code == 200


def test_a_server_that_refused_all_this_still_serves(refusing):
    assert refusing.complete("x", max_tokens=3)["usage"]["completion_tokens"] == 3
