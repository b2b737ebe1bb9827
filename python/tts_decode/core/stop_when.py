r"""Predicates for `SamplingParams.stop_when`: answers that are complete before their end token."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

StopWhen = Callable[[str], bool]
"""Says from the text after the prompt whether a branch is at its end."""

_BOX = re.compile(r"\\boxed\s{0,9}\{")
_BRACES = re.compile(r"\\.|[{}]", re.DOTALL)
_OBJECT = json.JSONDecoder()


def closed_boxed(text: str) -> bool:
    r"""Whether the last \boxed{ of the text is closed. A brace after a backslash does not count."""
    boxes = [*_BOX.finditer(text)]
    if boxes:
        depth = 1
        for brace in _BRACES.finditer(text, boxes[-1].end()):
            depth += {"{": 1, "}": -1}.get(brace[0], 0)
            if depth == 0:
                return True
    return False


def closed_json(text: str) -> bool:
    """Whether the first { of the text opens a JSON object that is closed, whatever follows it."""
    start = text.find("{")
    if start < 0 or "}" not in text[start:]:
        return False
    try:
        _OBJECT.raw_decode(text, start)
    except (ValueError, RecursionError):
        return False
    return True


READY: dict[str, StopWhen] = {"closed_boxed": closed_boxed, "closed_json": closed_json}
"""The predicates that a file can name."""


def stop_when_name(stop_when: StopWhen) -> str:
    """Returns the name of a predicate for `stop_when_of`; raises ValueError for any other predicate."""
    for name, ready in READY.items():
        if stop_when is ready:
            return name
    raise ValueError(
        f"stop_when: got {getattr(stop_when, '__name__', type(stop_when).__name__)}, expected one of "
        f"{', '.join(READY)}; no other can be written to a file"
    )


def stop_when_of(name: object) -> StopWhen:
    """Returns the predicate of a `stop_when_name`; raises ValueError for anything else."""
    if not isinstance(name, str) or name not in READY:
        raise ValueError(f"stop_when: got {name!r:.80}, expected one of {', '.join(READY)}")
    return READY[name]
