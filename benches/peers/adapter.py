"""The measuring process of a peer, in the peer's own environment, which needs none of our packages.

It starts with one argument, a JSON object with the model's path and the peer's settings. It describes itself
in a JSON line, then answers each request line with a result line. "call" in a request names a method of the
peer; the other entries are its arguments.
"""

from __future__ import annotations

import json
import os
import sys
import time
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, Protocol


class Peer(Protocol):
    """about: what ran: versions, types of weights and of KV."""

    about: dict[str, Any]

    def measure(self, prompt: list[int], branches: int, tokens: int) -> tuple[float, float]:
        """Seconds of the prefill of `prompt`, of which nothing may be cached, and of `tokens` decode steps of
        `branches` branches that share it. Tokens are drawn at temperature 1 from the whole vocabulary, and
        nothing ends early. 0 seconds of decoding: not known, this time."""


class KeptPrompt(Peer):
    """A peer that keeps what it computed of a prompt, and decodes from there as often as it is asked."""

    def measure(self, prompt: list[int], branches: int, tokens: int) -> tuple[float, float]:
        return self.prefill(prompt), self.decode(branches, tokens)

    @abstractmethod
    def prefill(self, prompt: list[int]) -> float:
        """Seconds, as of `measure`. The prompt takes the place of the one that was kept."""

    @abstractmethod
    def decode(self, branches: int, tokens: int) -> float:
        """Seconds, as of `measure`. The prompt is kept as it was."""


class WholeRuns(KeptPrompt):
    """A peer whose runs can only be timed whole, on a prompt that it caches."""

    def prefill(self, prompt: list[int]) -> float:
        self.prompt = prompt
        return self.run(prompt, 1, 1)

    def decode(self, branches: int, tokens: int) -> float:
        self.run(self.prompt, branches, 1)  # takes longer than the same once more
        return difference(*(self.run(self.prompt, branches, count) for count in (1, tokens + 1, 1)))

    @abstractmethod
    def run(self, prompt: list[int], branches: int, tokens: int) -> float:
        """Seconds of the prompt and that many tokens of each branch."""


def difference(before: float, whole: float, after: float) -> float:
    """Seconds of decoding where only whole runs can be timed: what `whole` took longer than runs of one token
    before and after it. 0 where these two differ by more than half of that, so that it says nothing."""
    decode = whole - (before + after) / 2
    return decode if decode > 2 * abs(before - after) else 0.0


def serve(make: Callable[[dict[str, Any]], Peer]) -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is no answer

    def answer(result: dict[str, Any]) -> None:
        answers.write(json.dumps(result) + "\n")

    before, begin = _memory("VmRSS"), time.perf_counter()
    try:
        peer = make(json.loads(sys.argv[1]))
        seconds = time.perf_counter() - begin
        peer.measure(list(range(1000, 1040)), 2, 2)
    except Exception as error:  # of another package: it may be anything
        answer({"error": f"{type(error).__name__}: {error}"})
        return
    loaded = _memory("VmRSS")
    memory = {"before": before, "loaded": loaded, "mapped": _memory("RssFile"), "peak": _memory("VmHWM")}
    answer(peer.about | {"load_seconds": seconds, "memory": memory})
    for line in sys.stdin:
        loaded = min(loaded, _memory("VmRSS"))  # what it keeps from one request counts as growth of the next
        _forget_peak()
        try:
            times = _times(peer, **json.loads(line))
        except Exception as error:
            answer({"error": f"{type(error).__name__}: {error}"})
        else:
            answer(times | {"growth": _memory("VmHWM") - loaded})


def _times(peer: Peer, call: str, **arguments: Any) -> dict[str, float]:
    """Seconds by the name of what took them."""
    result = getattr(peer, call)(**arguments)
    return dict(zip(("prefill", "decode"), result, strict=True)) if call == "measure" else {call: result}


def _memory(name: str) -> int:
    """Bytes that are in memory of this process and those that it started: VmRSS, now, with pages of mapped
    files; RssFile, those alone; VmHWM, the most of each since `_forget_peak`."""
    total = 0
    for process in _processes():
        with open(f"/proc/{process}/status") as lines:
            total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))
    return total


def _forget_peak() -> None:
    for process in _processes():
        with open(f"/proc/{process}/clear_refs", "w") as file:
            file.write("5")


def _processes() -> list[int]:
    """This process, its children, and theirs."""
    found = [os.getpid()]
    for process in found:  # grows while it is walked
        for thread in os.listdir(f"/proc/{process}/task"):
            with open(f"/proc/{process}/task/{thread}/children") as file:
                found += map(int, file.read().split())
    return found
