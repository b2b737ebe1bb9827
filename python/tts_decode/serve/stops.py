"""Why a text ends, in a client's terms."""

from __future__ import annotations

_STOPPED = frozenset({"eos", "stop_string", "stop_token", "stop_when", "complete"})


def finish_reason(reason: str | None) -> str:
    """Returns OpenAI's reason for the end of a branch. A dead end counts as a limit: its text is cut."""
    return "stop" if reason in _STOPPED else "length"
