"""The application alone, under a different ASGI server from the command's."""

import pytest
from serving import MODEL, make_chatty
from starlette.testclient import TestClient
from tts_decode.serve.app import create_app
from tts_decode.serve.config import ServerConfig

BODY = {"prompt": "The quick", "max_tokens": 8, "temperature": 0}


@pytest.mark.usefixtures("one_thread")
def test_it_serves_each_time_that_it_is_started(model):
    decoder = make_chatty(model)
    app = create_app(decoder, ServerConfig(MODEL))
    texts = []
    for _ in range(2):
        with TestClient(app, base_url="http://localhost") as client:
            assert client.get("/health").json() == {"status": "ok"}
            texts.append(client.post("/v1/completions", json=BODY).json()["choices"][0]["text"])
        assert decoder.stats().resident_bytes == 0
    assert texts[0] == texts[1] != ""


@pytest.mark.usefixtures("one_thread")
def test_without_lifespan_it_says_what_is_missing(model):
    app = create_app(make_chatty(model), ServerConfig(MODEL))
    client = TestClient(app, base_url="http://localhost")  # not entered, so nothing is started
    assert client.get("/health").status_code == 500
    with pytest.raises(
        RuntimeError, match="is not open: run its application by an ASGI server with lifespan"
    ):
        _ = app.state.server.desk


def test_pages_that_hold_hardly_a_chat_are_refused(model):
    """A page holds 16 tokens in 24,576 bytes; the model's longest text has 512."""
    small = make_chatty(model, kv_bytes=31 * 24576)
    problem = r"^decoder: got KV pages of 496 tokens, expected at least 512; make it with kv_bytes = 786432"
    with pytest.raises(ValueError, match=problem):
        create_app(small, ServerConfig(MODEL))
    with pytest.raises(ValueError, match="at least 512"):  # the model's longest text
        create_app(small, ServerConfig(MODEL, least_kv_tokens=1000))
    assert create_app(small, ServerConfig(MODEL, least_kv_tokens=496))
    assert create_app(make_chatty(model, kv_bytes=32 * 24576), ServerConfig(MODEL))


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"model": " "}, ValueError, "model: got ' ', expected a name"),
        ({"model": 3}, TypeError, "model: got int, expected a str"),
        ({"keys": "secret-key"}, TypeError, "keys: got a str, expected a list of texts"),
        ({"keys": ("",)}, ValueError, "keys: got 0 characters for key 1, expected at least 8"),
        ({"scorers": [1]}, TypeError, r"scorers: got \[1\], expected a mapping"),
        ({"scorers": {"": print}}, ValueError, "scorers: got the name '', expected"),
        ({"scorers": {"a": 3}}, TypeError, "scorers: got 3 for 'a', expected an async function"),
        ({"limits": {}}, TypeError, "limits: got dict, expected a Limits"),
        ({"least_kv_tokens": 0}, ValueError, "least_kv_tokens: got 0, expected >= 1"),
    ],
)
def test_a_configuration_is_checked_where_it_is_made(options, kind, words):
    with pytest.raises(kind, match=f"^{words}") as caught:
        ServerConfig(**{"model": MODEL} | options)
    assert "secret" not in str(caught.value)


def test_what_is_served_is_a_decoder(model):
    with pytest.raises(TypeError, match=r"^decoder: got str, expected a TreeDecoder"):
        create_app("model", ServerConfig(MODEL))
    with pytest.raises(TypeError, match=r"^config: got str, expected a ServerConfig"):
        create_app(make_chatty(model), MODEL)
