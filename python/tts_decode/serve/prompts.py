"""Prompts of requests as text and ids."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..decoding.decoder import TreeDecoder
from .config import Limits
from .errors import APIError, invalid
from .protocol import ChatBody, CompletionBody

_MARK = "\N{WHITE SQUARE}final-message\N{WHITE SQUARE}"  # stands for a message while a template is filled in
_LONG = 1 << 15  # characters; texts from here on are read beside the event loop


@dataclass(frozen=True)
class Prompt:
    """text: None where ids were given. ids: the tokenizer's own. messages: of a chat."""

    text: str | None
    ids: list[int]
    messages: tuple[dict[str, str], ...] = ()


async def completion_prompts(body: CompletionBody, decoder: TreeDecoder, limits: Limits) -> list[Prompt]:
    if len(body.prompt) > limits.prompts:
        raise invalid("prompt", f"got {len(body.prompt)} prompts, expected at most {limits.prompts}")
    prompts = []
    for given in body.prompt:
        if isinstance(given, str):
            prompts.append(Prompt(given, await _ids(given, decoder, "prompt", special=True)))
        else:
            prompts.append(Prompt(None, _checked(given, decoder)))
    for prompt in prompts:
        _check_length(prompt, "prompt", decoder, limits)
    return prompts


async def chat_prompt(body: ChatBody, decoder: TreeDecoder, limits: Limits) -> Prompt:
    if not decoder.knows_chat:
        raise invalid("messages", "the model has no chat template; use /v1/completions", "no_chat_template")
    messages = [{"role": m.role, "content": m.content} for m in body.messages]
    goes_on = bool(body.continue_final_message)
    adds = not goes_on if body.add_generation_prompt is None else body.add_generation_prompt
    if goes_on and adds:
        problem = "got true beside add_generation_prompt, expected one of them"
        raise invalid("continue_final_message", problem)
    if goes_on and messages[-1]["role"] != "assistant":
        raise invalid("continue_final_message", "the last message is not an assistant's")
    text = _rendered(messages, decoder, adds, goes_on)
    prompt = Prompt(text, await _ids(text, decoder, "messages", special=False), tuple(messages))
    _check_length(prompt, "messages", decoder, limits)
    return prompt


def _rendered(messages: list[dict[str, str]], decoder: TreeDecoder, adds: bool, goes_on: bool) -> str:
    """The chat as text. A message that goes on stands at its end letter by letter, whatever the template does
    to the ends of messages."""
    given = [*messages[:-1], messages[-1] | {"content": _MARK}] if goes_on else messages
    try:
        text: str = decoder.tokenizer.apply_chat_template(given, tokenize=False, add_generation_prompt=adds)
    except Exception as error:  # a template's own refusals, such as of roles out of turn
        told = str(error)[:200] if type(error).__name__ == "TemplateError" else "it cannot be filled in"
        raise invalid("messages", f"the model's chat template refuses them: {told}") from None
    if not goes_on:
        return text
    before, mark, _ = text.rpartition(_MARK)
    if not mark:
        raise invalid("continue_final_message", "the model's chat template leaves the last message out")
    return before + messages[-1]["content"]


async def _ids(text: str, decoder: TreeDecoder, param: str, *, special: bool) -> list[int]:
    reader = decoder.runtime.reader

    def read() -> list[int]:
        return reader.prompt(text)[1] if special else reader.ids(text)

    try:
        return await asyncio.to_thread(read) if len(text) > _LONG else read()
    except ValueError as error:
        raise invalid(param, str(error)) from None


def _checked(ids: Sequence[Any], decoder: TreeDecoder) -> list[int]:
    for token in ids:
        if not 0 <= token < decoder.vocab_size:
            problem = f"got the token id {str(token)[:20]}, expected 0 to {decoder.vocab_size - 1}"
            raise invalid("prompt", problem)
    return list(ids)


def _check_length(prompt: Prompt, param: str, decoder: TreeDecoder, limits: Limits) -> None:
    sizes = [size for size in (limits.prompt_tokens, decoder.max_positions) if size is not None]
    if not prompt.ids:
        raise invalid(param, "holds no token")
    if sizes and len(prompt.ids) > min(sizes):
        message = f"{param}: got {len(prompt.ids)} tokens, expected at most {min(sizes)}"
        raise APIError(400, message, param, "context_length_exceeded")
