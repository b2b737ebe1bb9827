"""Turns prompts and forced text into checked token ids."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tts_kernels.checks import shown

Prompt = str | Sequence[int] | Sequence[Mapping[str, Any]]


def is_chat(prompt: Prompt) -> bool:
    return not isinstance(prompt, str) and any(isinstance(item, Mapping) for item in prompt)


def question_in(prompt: Prompt) -> str | None:
    """Returns the user's question; None for token ids.

    The question is the text or, in a chat, the user's last message (all messages if the user has none).
    """
    if isinstance(prompt, str):
        return prompt
    if not is_chat(prompt):
        return None
    messages = [item for item in prompt if isinstance(item, Mapping)]
    asked = [message for message in messages if message.get("role") == "user"][-1:]
    return "\n".join(str(message.get("content") or "") for message in asked or messages)


def wrong_prompt(prompt: object, expected: str) -> TypeError:
    """Returns the error for something that is no prompt; for a single chat message, it says what to do."""
    advice = "; put the message into a list" if isinstance(prompt, Mapping) else ""
    return TypeError(f"prompt: got {type(prompt).__name__}, expected {expected}{advice}")


def check_messages(messages: Sequence[Any], *, name: str = "prompt", tools: bool = True) -> None:
    """Raises TypeError or ValueError for anything but chat messages with a role and a content.

    name: of the argument, for an error. tools: whether a message of tool calls may lack a content.
    """
    for index, message in enumerate(messages):
        where = f"{name}[{index}]"
        if not isinstance(message, Mapping):
            raise TypeError(f"{where}: got {shown(message)}, expected a chat message, {_MESSAGE}")
        role, content = message.get("role"), message.get("content")
        if not isinstance(role, str) or not role:
            got = "no role" if role is None else f"the role {shown(role)}"
            raise ValueError(f"{where}: got a message with {got}, expected {_MESSAGE}")
        if content is None and not (tools and message.get("tool_calls")):
            raise ValueError(
                f"{where}: got a message of role {shown(role)} without content, expected {_MESSAGE}"
            )
        if not isinstance(content, (str, list, tuple, type(None))):
            raise ValueError(
                f"{where}: got the content {shown(content)}, expected a text, or a list of parts"
            )


_MESSAGE = '{"role": "user", "content": text}'


def chat_text(
    tokenizer: Any, messages: Sequence[Any], *, name: str = "prompt", add_generation_prompt: bool = True
) -> str:
    """Renders messages with the model's chat template. name: of the argument, for an error."""
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError(
            f"{name}: got chat messages, but the tokenizer has no chat template; give text or token ids, or "
            "set tokenizer.chat_template"
        )
    try:
        text: str = tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=add_generation_prompt
        )
    except Exception as cause:  # a broken template, or its own refusal, as of roles in a wrong order
        raise ValueError(
            f"{name}: got messages that the chat template of the model refuses: {type(cause).__name__}: "
            f"{shown(str(cause))}; give others, or set tokenizer.chat_template"
        ) from cause
    return text


class PromptReader:
    """Turns text into ids with a tokenizer, and checks ids against a vocabulary."""

    def __init__(self, tokenizer: Any, vocab_size: int) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size

    def prompt(self, prompt: Any, ids: Sequence[int] | None = None) -> tuple[Prompt, list[int]]:
        """Returns a copy of the prompt, which later changes of the caller's object leave alone, and its ids.

        ids: used instead of the tokenizer's ids.
        """
        if isinstance(prompt, str):
            return prompt, self.ids(self._tokenize(prompt) if ids is None else ids)
        if isinstance(prompt, Mapping) or not isinstance(prompt, Iterable):
            raise wrong_prompt(prompt, "text, token ids or chat messages")
        items: list[Any] = list(prompt)
        if not items or not isinstance(items[0], Mapping):
            own = self.ids(items)
            return list(own), own if ids is None else self.ids(ids)
        check_messages(items)
        own = self.ids(chat_text(self._tokenizer, items) if ids is None else ids)
        return [dict(message) for message in items], own

    def ids(self, tokens: Any) -> list[int]:
        """Returns the token ids of a text without special tokens, or the given ids; checked."""
        if isinstance(tokens, str):
            tokens = self._tokenize(tokens, add_special_tokens=False)
        if not isinstance(tokens, Iterable):
            raise TypeError(f"tokens: got {type(tokens).__name__}, expected text or token ids")
        ids = []
        for i, token in enumerate(tokens):
            try:
                ids.append(operator.index(token))
            except TypeError:
                raise TypeError(f"tokens[{i}]: got {shown(token)}, expected a token id, an int") from None
            if not 0 <= ids[-1] < self._vocab_size:
                raise ValueError(
                    f"tokens[{i}]: got {shown(ids[-1])}, expected an id of the vocabulary, "
                    f"0..{self._vocab_size - 1}"
                )
        return ids

    def _tokenize(self, text: str, **options: bool) -> list[int]:
        try:
            text.encode()
        except UnicodeEncodeError as cause:
            raise ValueError(f"text: got {cause.reason} at {cause.start}, expected valid Unicode") from cause
        ids: list[int] = self._tokenizer(text, **options)["input_ids"]
        return ids
