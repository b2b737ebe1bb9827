"""The application alone, under another ASGI server than that of the command."""

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
