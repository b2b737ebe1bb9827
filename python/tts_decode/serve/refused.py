"""Fields of the protocol that are not served, each with the reason; and their values that ask for nothing."""

from __future__ import annotations

from typing import Any

from .errors import unsupported

# Field -> reason, and the values besides null with which it is ignored.
_ANYWHERE: dict[str, tuple[str, tuple[Any, ...]]] = {
    "store": ("answers are not stored", (False,)),
    "service_tier": ("there is one tier", ("auto", "default")),
}
_COMPLETIONS = _ANYWHERE | {"suffix": ("the model does not fill in between", ("",))}
_NO_TOOLS = "tools are not served; ask in the prompt for a form of answer"
_CHAT = _ANYWHERE | {
    "tools": (_NO_TOOLS, ([],)),
    "tool_choice": (_NO_TOOLS, ("none", "auto")),
    "parallel_tool_calls": (_NO_TOOLS, (True, False)),
    "functions": (_NO_TOOLS, ([],)),
    "function_call": (_NO_TOOLS, ("none", "auto")),
    "audio": ("answers are text", ()),
    "modalities": ("answers are text", (["text"],)),
    "moderation": ("nothing is moderated here", ()),
    "prediction": ("predicted outputs are not used", ()),
    "reasoning_effort": ("the model has no such setting", ("none",)),
    "verbosity": ("the model has no such setting", ("medium",)),
    "web_search_options": ("there is no search of the web", ()),
}
# The same for one message.
OF_MESSAGES = {
    "name": "chat templates know roles only",
    "tool_calls": _NO_TOOLS,
    "tool_call_id": _NO_TOOLS,
    "function_call": _NO_TOOLS,
    "audio": "messages are text",
    "refusal": "an assistant's message is its content",
}
REFUSED = {"completions": _COMPLETIONS, "chat": _CHAT}


def without_refused(kind: str, body: dict[str, Any]) -> dict[str, Any]:
    """Returns the body without fields that ask for nothing.

    Raises APIError, 400, for a field that is not served.
    """
    kept = {}
    for name, value in body.items():
        if name not in REFUSED[kind]:
            kept[name] = value
            continue
        why, harmless = REFUSED[kind][name]
        if value is not None and not any(type(value) is type(other) and value == other for other in harmless):
            raise unsupported(name, why)
    return kept
