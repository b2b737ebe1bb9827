"""Shared by the tests of constraints; the fixture `ending_decoder` is in the conftest of tests/decode."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from tts_decode import Constraint, SamplingParams

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 4}, "n": {"type": "integer"}},
    "required": ["name", "n"],
    "additionalProperties": False,
}


def params(constraint: Constraint | None, **options: Any) -> SamplingParams:
    return SamplingParams(**({"seed": 3, "max_step_tokens": 100} | options), constraint=constraint)


@dataclass(frozen=True)
class Pairs:
    """Written in Python: pairs of a letter of `letters` and ";". For byte tokens."""

    letters: str = "abc"

    def start(self, tokenizer: Any) -> PairsState:
        return PairsState(self.letters, "")


class PairsState:
    def __init__(self, letters: str, text: str) -> None:
        self._letters, self._text = letters, text

    @property
    def accepts(self) -> bool:
        return len(self._text) % 2 == 0

    def mask(self) -> npt.NDArray[np.bool_]:
        allowed = np.zeros(128, np.bool_)  # shorter than the vocabulary
        allowed[list((self._letters if self.accepts else ";").encode())] = True
        return allowed

    def advance(self, token: int) -> bool:
        if token >= 128 or not self.mask()[token]:
            return False
        self._text += chr(token)
        return True

    def fork(self) -> PairsState:
        return PairsState(self._letters, self._text)

    def rollback(self, count: int) -> None:
        self._text = self._text[: len(self._text) - count]
