"""Who leaves while a request waits for the tokenizer, or to be read, gives up its place and bytes at once."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from raw_http import send
from serving import Served, until
from tts_decode.core.prompts import PromptReader
from tts_decode.serve import bodies

PATH = "/v1/completions"
LONG = {"prompt": ["x" * 512] * 64, "max_tokens": 1}  # read beside the event loop
SHORT = {"prompt": "x", "max_tokens": 1}


class Slow:
    """A function that waits until it may continue, and counts the active calls."""

    def __init__(self, function: Any) -> None:
        self._function, self._lock = function, threading.Lock()
        self.go = threading.Event()
        self.inside = self.most = self.calls = 0

    def __call__(self, *arguments: Any) -> Any:
        with self._lock:
            self.calls += 1
            self.inside += 1
            self.most = max(self.most, self.inside)
        try:
            assert self.go.wait(30)
            return self._function(*arguments)
        finally:
            with self._lock:
                self.inside -= 1


@pytest.fixture
def slow() -> Iterator[list[Slow]]:
    """The waiting functions of a test; they continue at its end."""
    made: list[Slow] = []
    yield made
    for each in made:
        each.go.set()


def test_who_leaves_does_not_wait_for_the_tokenizer(
    served: Served, slow: list[Slow], monkeypatch: pytest.MonkeyPatch
) -> None:
    reading = Slow(PromptReader.prompt)
    slow.append(reading)
    monkeypatch.setattr(PromptReader, "prompt", lambda *arguments: reading(*arguments))
    admission, held = served.server.admission, served.server.bodies
    first = send(served.port, PATH, LONG)
    until(lambda: reading.inside == 1)
    own = held.held
    others = [send(served.port, PATH, body) for body in (LONG, SHORT)]
    until(lambda: admission.running == 64 + 64 + 1)
    assert held.held > 2 * own
    for connection in others:
        connection.close()
    until(lambda: (admission.running, held.held) == (64, own))
    first.close()
    until(lambda: (admission.running, held.held) == (0, 0))
    last = send(served.port, PATH, SHORT)
    until(lambda: admission.running == 1)
    assert reading.calls == 1  # the thread has the tokenizer to its end, though nobody waits for it
    reading.go.set()
    assert b" 200 " in last.recv(100)
    assert reading.most == 1
    last.close()


def test_who_leaves_does_not_wait_for_a_body_to_be_read(
    served: Served, slow: list[Slow], monkeypatch: pytest.MonkeyPatch
) -> None:
    reading = Slow(bodies.read_body)
    slow.append(reading)
    monkeypatch.setattr(bodies, "read_body", reading)
    connection = send(served.port, PATH, LONG)
    until(lambda: reading.inside == 1)
    assert served.server.bodies.held > 64 * 512
    connection.close()
    until(lambda: served.server.bodies.held == 0)
    assert reading.inside == 1
