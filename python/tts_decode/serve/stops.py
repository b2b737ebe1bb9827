"""Why a text ends, for a client."""

from __future__ import annotations

_STOPPED = frozenset({"eos", "stop_string", "stop_token", "stop_when", "complete"})


def finish_reason(reason: str | None) -> str:
    """As OpenAI has it, of a branch that ended. A dead end is a limit: what is there lacks its end."""
    return "stop" if reason in _STOPPED else "length"
