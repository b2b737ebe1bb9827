"""Grammars are compiled once for a request, not on the engine's thread, and within a time."""

import asyncio
import subprocess
import sys
import threading
import time

import pytest
from tts_decode.core.constraints.grammars import JSONSchema
from tts_decode.serve.errors import APIError
from tts_decode.serve.grammars import Grammars

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


def test_a_schema_beyond_the_limits_of_llguidance_is_refused(served):
    """Its alternatives multiply to 4**7 objects."""
    parts = [[{"properties": {f"p{i}{j}": {"type": "integer"}}} for j in range(4)] for i in range(7)]
    form = {"type": "json_schema", "json_schema": {"schema": {"allOf": [{"anyOf": part} for part in parts]}}}
    answer = served.post("/v1/completions", {"prompt": PROMPT, "response_format": form})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "response_format")
    assert "too large" in answer.json()["error"]["message"]


class Stuck(JSONSchema):
    """Its compilation does not end before `go_on`."""

    go_on = threading.Event()
    begun: list[str] = []  # noqa: RUF012

    def is_compiled(self, tokenizer):
        return False

    def start(self, tokenizer):
        self.begun.append(str(self.schema))
        self.go_on.wait(60)


@pytest.fixture
def stuck(monkeypatch):
    monkeypatch.setattr("tts_decode.serve.grammars._SECONDS", 0.2)
    monkeypatch.setattr(Stuck, "go_on", threading.Event())
    monkeypatch.setattr(Stuck, "begun", [])
    yield Stuck
    Stuck.go_on.set()


class Quick(JSONSchema):
    def is_compiled(self, tokenizer):
        return False

    def start(self, tokenizer):
        pass


class Known(Quick):
    def is_compiled(self, tokenizer):
        return True


async def status_of(grammars, constraint):
    try:
        await grammars.compiled(constraint)
    except APIError as error:
        return error.status
    return 200


def test_where_all_threads_are_stuck_others_are_told_to_come_again(stuck):
    async def run():
        grammars = Grammars(None)
        waiting = [status_of(grammars, stuck({"title": name})) for name in "ab"]
        assert await asyncio.gather(*waiting) == [400, 400]
        assert await status_of(grammars, Quick({})) == 503
        assert await status_of(grammars, Known({})) == 200  # has nothing to compile
        assert await status_of(grammars, None) == 200
        stuck.go_on.set()
        assert await status_of(grammars, Quick({})) == 200

    asyncio.run(run())


def test_equal_grammars_take_one_thread(stuck):
    async def run():
        grammars = Grammars(None)
        waiting = [status_of(grammars, stuck({"title": "a"})) for _ in range(4)]
        assert await asyncio.gather(*waiting) == [400] * 4
        assert stuck.begun == ['{"title": "a"}']
        assert await status_of(grammars, Quick({})) == 200

    asyncio.run(run())


def test_a_grammar_waits_for_a_thread(stuck):
    async def run():
        grammars = Grammars(None)
        others = [asyncio.ensure_future(status_of(grammars, stuck({"title": name}))) for name in "ab"]
        await asyncio.sleep(0)
        asyncio.get_running_loop().call_later(0.1, stuck.go_on.set)
        assert await status_of(grammars, Quick({})) == 200
        assert await asyncio.gather(*others) == [200, 200]

    asyncio.run(run())


EXIT = """
import asyncio, threading
from tts_decode.core.constraints.grammars import JSONSchema
from tts_decode.serve import grammars
from tts_decode.serve.errors import APIError

class Stuck(JSONSchema):
    def is_compiled(self, tokenizer):
        return False
    def start(self, tokenizer):
        threading.Event().wait()

grammars._SECONDS = 0.1
try:
    asyncio.run(grammars.Grammars(None).compiled(Stuck({})))
except APIError as error:
    print(error.status, flush=True)
"""


def test_a_process_ends_beside_a_compilation_that_does_not():
    done = subprocess.run([sys.executable, "-c", EXIT], capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.returncode) == ("400\n", 0), done.stderr
