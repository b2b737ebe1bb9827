"""Prompts are refused by length before anything is done with them, and read apart from the engine."""

import threading

import pytest
from tts_decode.core.prompts import PromptReader
from tts_decode.decoding.retained import RetainedTexts
from tts_decode.serve.config import Limits

USER = {"role": "user", "content": "Hi"}


@pytest.fixture
def reads(monkeypatch):
    """(thread, tokenizer, characters) of each text that a server reads."""
    seen = []
    for name in ("prompt", "ids"):
        original = getattr(PromptReader, name)

        def noting(self, given, *ids, original=original):
            if isinstance(given, str):
                seen.append((threading.current_thread().name, vars(self)["_tokenizer"], len(given)))
            return original(self, given, *ids)

        monkeypatch.setattr(PromptReader, name, noting)
    return seen


def test_a_text_too_long_for_any_tokens_is_not_read(serve, reads):
    """The longest token of the tests' tokenizer has 5 characters."""
    served = serve(limits=Limits(prompt_tokens=100, idle_seconds=5.0))
    for path, body in (
        ("/v1/completions", {"prompt": "x" * 501}),
        ("/v1/completions", {"prompt": ["x", "x" * 501]}),
        ("/v1/chat/completions", {"messages": [USER, {"role": "user", "content": "x" * 501}]}),
    ):
        answer = served.post(path, body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "context_length_exceeded")
    assert reads == []
    assert served.post("/v1/completions", {"prompt": "x" * 101}).status_code == 400
    assert [size for *_, size in reads] == [101]


def test_the_sum_of_lengths_decides_where_texts_are_read(serve, monkeypatch, reads):
    monkeypatch.setattr("tts_decode.serve.prompts._LONG", 100)
    served = serve()
    served.complete(["x" * 30] * 3, max_tokens=1)
    served.complete(["x" * 30] * 4, max_tokens=1)
    short, long = {name for name, *_ in reads[:3]}, {name for name, *_ in reads[3:]}
    assert len(short) == len(long) == 1
    assert short != long
    assert "tts-decoder" not in short | long


def test_http_reads_by_a_tokenizer_of_its_own(served, reads):
    served.complete("x", max_tokens=1)
    served.chat([USER], max_tokens=1)
    assert {name for name, *_ in reads} != {"tts-decoder"}
    assert all(
        tokenizer is not served.decoder.tokenizer for name, tokenizer, _ in reads if name != "tts-decoder"
    )


def test_metrics_are_read_on_the_engines_thread(served, monkeypatch):
    threads = []

    def counted(self):
        threads.append(threading.current_thread().name)
        return 7

    monkeypatch.setattr(RetainedTexts, "__len__", counted)
    assert "tts_decode_retained_texts 7.0" in served.http.get("/metrics").text
    assert threads == ["tts-decoder"]


def test_a_tokenizer_that_fails_is_an_error_of_the_server(served, monkeypatch, caplog):
    def fails(self, text):
        raise TypeError("at /home/me/tokenizer.json")

    monkeypatch.setattr(PromptReader, "prompt", fails)
    answer = served.post("/v1/completions", {"prompt": "x"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")
    assert "/home" not in answer.text
    assert "/home/me/tokenizer.json" in caplog.text
    assert served.server.admission.running == 0
