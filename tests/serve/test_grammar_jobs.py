"""Grammars are compiled once for a request, not on the engine's thread, and within a time."""

import threading
import time

import pytest
from tts_decode.core.constraints.grammars import JSONSchema

llguidance = pytest.importorskip("llguidance")

PROMPT = "The quick brown fox"
SCHEMA = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"]}
FORM = {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}


def test_all_choices_of_all_prompts_share_one_compilation(served, monkeypatch):
    compile_one, threads = llguidance.LLMatcher, []

    def noting(vocabulary, grammar, **options):
        threads.append(threading.current_thread().name)
        return compile_one(vocabulary, grammar, **options)

    monkeypatch.setattr("tts_decode.core.constraints.compiler.LLMatcher", noting)
    body = {"prompt": [PROMPT, "Another"], "n": 3, "seed": 1, "max_tokens": 40, "response_format": FORM}
    assert len(served.complete(**body)["choices"]) == 6
    (thread,) = threads
    assert thread.startswith("tts-grammars")


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
