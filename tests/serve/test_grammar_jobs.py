"""Grammars are compiled once for a request, not on the engine's thread, and within a time."""

import threading
import time

import pytest
from tts_decode.core.constraints.grammars import JSONSchema

llguidance = pytest.importorskip("llguidance")

PROMPT = "The quick brown fox"
SCHEMA = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"]}
FORM = {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}


@pytest.fixture
def starts(monkeypatch):
    """Names of the threads in which the grammar of FORM was compiled."""
    names = []
    start = JSONSchema.start

    def noting(self, tokenizer):
        if "enum" in str(self.schema):
            names.append(threading.current_thread().name)
        return start(self, tokenizer)

    monkeypatch.setattr(JSONSchema, "start", noting)
    return names


def test_all_choices_of_all_prompts_share_one_compilation(served, starts):
    body = {"prompt": [PROMPT, "Another"], "n": 3, "seed": 1, "max_tokens": 40, "response_format": FORM}
    answer = served.complete(**body)
    assert len(answer["choices"]) == 6
    (name,) = starts
    assert name != "tts-decoder"


def test_a_grammar_that_takes_too_long_is_refused_and_holds_up_nobody(served, monkeypatch):
    monkeypatch.setattr("tts_decode.serve.grammars._SECONDS", 0.2)
    go_on = threading.Event()

    def waiting(self, tokenizer):
        go_on.wait(20)

    monkeypatch.setattr(JSONSchema, "start", waiting)
    answers = []
    body = {"prompt": PROMPT, "max_tokens": 4, "response_format": FORM}
    thread = threading.Thread(target=lambda: answers.append(served.post("/v1/completions", body)))
    thread.start()
    try:
        time.sleep(0.05)
        assert served.complete(PROMPT, max_tokens=4)["choices"]
        thread.join(10)
        (answer,) = answers
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "response_format")
    finally:
        go_on.set()
