"""Reads the beginning of a request's prompt, by which its replica is chosen."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

from ..cluster.prefixes import MOST_CHARACTERS
from ..records.strict_json import loads


def beginning_of(body: bytes) -> str:
    """Returns the beginning of a completion's or a chat's prompt, "" if the body has none.

    Of a list of prompts, the first one counts. Nothing is refused here: the replica reports what is wrong.
    """
    try:
        value = loads(body)
    except ValueError:
        return ""
    if not isinstance(value, dict):
        return ""
    messages = value.get("messages")
    text = _prompt(value.get("prompt")) if messages is None else _chat(messages)
    return text[:MOST_CHARACTERS]


def _prompt(prompt: Any) -> str:
    if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int):
        prompt = prompt[0]
    if isinstance(prompt, list):
        return " ".join(str(token) for token in islice(prompt, MOST_CHARACTERS // 2))
    return prompt if isinstance(prompt, str) else ""


def _chat(messages: Any) -> str:
    """Roles and texts, each on a line."""
    lines: list[str] = []
    size = 0
    for message in messages if isinstance(messages, list) else ():
        if not isinstance(message, dict):
            break
        for text in (message.get("role"), *_texts(message.get("content"))):
            lines.append(str(text))
            size += len(lines[-1]) + 1
        if size >= MOST_CHARACTERS:
            break
    return "\n".join(lines)


def _texts(content: Any) -> Iterator[str]:
    if isinstance(content, str):
        yield content
    elif isinstance(content, list):
        for part in content:
            if isinstance(part, dict) and isinstance(part.get("text"), str):
                yield part["text"]
