"""Shared by transcriptions: numbers that depend only on their arguments, and scripts and scores made of them.

A transcription asks its script directly, without an engine.
"""

from __future__ import annotations

import zlib
from collections import Counter

from tts_decode import SamplingParams


def number(*values) -> int:
    """A number below 2 ** 32 that depends on the values alone."""
    return zlib.crc32(repr(values).encode())


def draw(*values) -> float:
    """A number in [0, 1) that depends on the values alone."""
    return number(*values) / 2**32


def step_sampling(seed):
    """For the steps of `step_script`."""
    return SamplingParams(stop=("\n",), max_tokens=500, seed=seed)


def step_script(seed, depth=5):
    """Steps of one word; after the first step one in four ends the answer, at the latest at `depth`."""

    def script(prefix, k):
        steps, drawn = prefix.count("\n"), number(seed, prefix, k)
        if steps >= depth - 1 or (steps > 0 and drawn % 4 == 0):
            return f"= {drawn % 97}", "eos"
        return f"{drawn % 9973}\n", "stop_string"

    return script


def random_score(seed, spread=1.0):
    """Scores around 1/2; a small spread leaves several particles with weight."""
    return lambda text: 0.5 + spread * (draw("score", seed, text) - 0.5)


def answer_of(text):
    """The last word."""
    return text.split()[-1]


class PlainModel:
    """The model of a transcription: the script, with no engine.

    asked: how often each prefix was asked for."""

    def __init__(self, script):
        self.script, self.asked = script, Counter()

    def __call__(self, prefix):
        """What the script says to the next request with that prefix."""
        self.asked[prefix] += 1
        return self.script(prefix, self.asked[prefix] - 1)

    def text(self, prefix):
        return self(prefix)[0]

    def step(self, prefix):
        """(text, whether it ends the answer)."""
        text, reason, *_ = self(prefix)
        return text, reason == "eos"


def prompts(decoder):
    """What a scripted decoder was asked, in order."""
    return [call.prefix for call in decoder.complete.calls]


def asked(decoder):
    return Counter(prompts(decoder))
