"""Bodies of any kind in every field: each is answered, or refused in the form of the protocol."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serving import Served, make_chatty
from tts_decode.serve.config import Limits
from tts_decode.serve.protocol import ChatBody, CompletionBody, SearchOptions
from tts_decode.serve.refused import REFUSED

LIMITS = Limits(
    max_tokens=20, choices=4, sequences=16, search_tokens=60, search_products=16, request_seconds=10.0
)
REFUSALS = {400, 404, 413, 429, 503, 504}

NUMBERS = st.one_of(
    st.integers(-3, 30),
    st.integers(),
    st.sampled_from([2**31, 2**53, 2**63, 2**64, -(2**63), 10**100, 1e300, -1e300, 1e-320, -0.0, 0.5]),
    st.floats(allow_nan=False, allow_infinity=False),
)
TEXTS = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    st.sampled_from(
        ["user", "assistant", "system", "text", "json_object", "json_schema", "beam_search", "\0"]
    ),
)
LEAVES = st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS)
NAMES = st.sampled_from(
    ["role", "content", "type", "text", "strategy", "n", "scorer", "schema", "json_schema", "1", "70"]
)
ANY = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES | TEXTS, inner, max_size=4),
    max_leaves=8,
)
TTS = st.fixed_dictionaries(
    {"strategy": st.sampled_from(["beam_search", "best_of_n", "mcts", "dvts", "ets", "self_consistency"])},
    optional=dict.fromkeys(
        [*list(SearchOptions.model_fields)[1:], "n", "beam_width", "max_steps", "seed"], ANY
    ),
)
SCHEMAS = st.fixed_dictionaries(
    {"type": st.just("json_schema"), "json_schema": ANY | st.fixed_dictionaries({"schema": ANY})}
)
KNOWN = {"tts": TTS | ANY, "response_format": SCHEMAS | ANY}


def bodies(kind, name, good):
    """Bodies that are good but for some fields."""
    fields = [*kind.model_fields, *REFUSED[name], "another"]
    optional = {field: KNOWN.get(field, ANY) for field in fields}
    wrong = st.lists(st.sampled_from(fields), max_size=3, unique=True).flatmap(
        lambda chosen: st.fixed_dictionaries({field: optional[field] for field in chosen})
    )
    return wrong.map(lambda given: good | given)


@pytest.fixture(scope="module")
def served(model):
    served = Served(make_chatty(model), limits=LIMITS)
    yield served
    served.assert_empties()
    served.close()


SETTINGS = settings(
    max_examples=200,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


def check(served, path, body):
    answer = served.http.post(
        path, content=json.dumps(body).encode(), headers={"Content-Type": "application/json"}
    )
    if answer.status_code != 200:
        assert answer.status_code in REFUSALS, (body, answer.text)
        assert answer.json()["error"].keys() == {"message", "type", "param", "code"}
        assert len(answer.content) < 2000
    elif body.get("stream"):
        assert answer.text.endswith("data: [DONE]\n\n")
        assert "internal_error" not in answer.text, (body, answer.text)
    else:
        json.loads(answer.content, parse_constant=pytest.fail)


@SETTINGS
@given(bodies(CompletionBody, "completions", {"prompt": "x", "max_tokens": 2}))
def test_any_completion(served, body):
    check(served, "/v1/completions", body)


@SETTINGS
@given(bodies(ChatBody, "chat", {"messages": [{"role": "user", "content": "x"}], "max_tokens": 2}))
def test_any_chat(served, body):
    check(served, "/v1/chat/completions", body)


@SETTINGS
@given(ANY)
def test_any_value(served, body):
    check(served, "/v1/completions", {"prompt": "x", "max_tokens": 1, "tts": body})
    check(served, "/v1/chat/completions", {"messages": body, "max_tokens": 1})


@SETTINGS
@given(st.binary(max_size=60))
def test_any_bytes(served, data):
    for body in (data, b'{"prompt": "' + data + b'"}', b'{"prompt": "x", ' + data + b"}"):
        answer = served.http.post(
            "/v1/completions", content=body, headers={"Content-Type": "application/json"}
        )
        assert answer.status_code in (200, 400), (body, answer.text)
