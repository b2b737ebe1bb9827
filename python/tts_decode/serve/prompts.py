"""Reads the prompts of requests as text and ids."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from ..core.detokenizer import token_bytes
from ..core.prompts import PromptReader
from ..decoding.decoder import TreeDecoder
from .config import Limits
from .errors import APIError, given, invalid, shortened
from .protocol import ChatBody, CompletionBody

T = TypeVar("T")

_MARK = "\N{WHITE SQUARE}final-message\N{WHITE SQUARE}"  # placeholder for a message in a template
_LONG = 1 << 15  # characters of a request; from here on they are read outside the event loop
_LONGEST_REASON = 200  # characters of a chat template's own message
_PER_MESSAGE = 32  # characters that take as long as one more message in a template


@dataclass(frozen=True)
class Prompt:
    """text: None if ids were given. ids: the tokenizer's own. messages: of a chat."""

    text: str | None
    ids: list[int]
    messages: tuple[dict[str, str], ...] = ()


class Prompts:
    """Reads prompts for the loop that speaks HTTP, one request at a time.

    It has a copy of the tokenizer: the engine's thread uses the decoder's, which is not thread-safe.
    """

    def __init__(self, decoder: TreeDecoder, limits: Limits) -> None:
        self._tokenizer = copy.deepcopy(decoder.tokenizer)
        self._reader = PromptReader(self._tokenizer, decoder.vocab_size)
        self._vocabulary, self._knows_chat = decoder.vocab_size, decoder.knows_chat
        own = [size for size in (limits.prompt_tokens, decoder.max_positions) if size is not None]
        self._tokens = min([*own, decoder.max_kv_tokens])
        self._why = "" if self._tokens in own else ", which the KV pages hold"
        # A longer text has more tokens in any case.
        self._characters = self._tokens * _longest(self._tokenizer)
        self._bytes: list[bytes] | None = None
        self._lock = asyncio.Lock()

    async def of_completion(self, body: CompletionBody) -> list[Prompt]:
        """Returns the prompts of a completion request. Raises APIError."""
        asked: list[Any] = body.prompt
        for item in asked:
            self._check_length("prompt", item)
        texts = [item for item in asked if isinstance(item, str)]
        if texts:
            return await self._apart(
                sum(map(len, texts)),
                lambda: [self._made("prompt", text, self._reader.prompt(text)[1]) for text in texts],
            )
        return [self._made("prompt", None, self._checked(ids)) for ids in asked]

    async def of_chat(self, body: ChatBody) -> Prompt:
        """Returns the prompt of a chat request. Raises APIError."""
        if not self._knows_chat:
            problem = "the model has no chat template; use /v1/completions"
            raise invalid("messages", problem, "no_chat_template")
        messages = [{"role": m.role, "content": m.content} for m in body.messages]
        goes_on = bool(body.continue_final_message)
        adds = not goes_on if body.add_generation_prompt is None else body.add_generation_prompt
        if goes_on and adds:
            problem = "got true beside add_generation_prompt, expected one of them"
            raise invalid("continue_final_message", problem)
        if goes_on and messages[-1]["role"] != "assistant":
            problem = (
                f"got true beside a last message of role {messages[-1]['role']}, expected an assistant's"
            )
            raise invalid("continue_final_message", problem)
        contents = "".join(message["content"] for message in messages)
        self._check_length("messages", contents)

        def read() -> Prompt:
            text = self._rendered(messages, adds, goes_on)
            self._check_length("messages", text)
            return self._made("messages", text, self._reader.ids(text), tuple(messages))

        return await self._apart(len(contents) + _PER_MESSAGE * len(messages), read)

    async def token_bytes(self) -> list[bytes]:
        """Returns each token's bytes; none for special ones, and for all if tokens do not map to bytes."""

        def read() -> list[bytes]:
            try:
                return token_bytes(self._tokenizer, self._vocabulary)
            except TypeError:
                return [b""] * self._vocabulary

        if self._bytes is None:
            self._bytes = await self._apart(_LONG, read)
        return self._bytes

    async def _apart(self, size: int, read: Callable[[], T]) -> T:
        """Returns the result of `read`, run alone with the tokenizer, outside the event loop if it is long.

        A thread cannot be cancelled: it keeps the tokenizer to its end, even if nobody waits for it.
        """
        if size < _LONG:
            async with self._lock:
                return read()
        await self._lock.acquire()
        work = asyncio.ensure_future(asyncio.to_thread(read))
        work.add_done_callback(lambda _: self._lock.release())
        return await asyncio.shield(work)

    def _rendered(self, messages: list[dict[str, str]], adds: bool, goes_on: bool) -> str:
        """Returns the chat as text.

        A message to be continued is at its end, letter by letter, whatever the template does to the ends of
        messages.
        """
        turns = [*messages[:-1], messages[-1] | {"content": _MARK}] if goes_on else messages
        try:
            text: str = self._tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=adds)
        except Exception as error:  # a template's own refusal, as of roles in a wrong order
            own = type(error).__name__ == "TemplateError"
            reason = shortened(str(error), _LONGEST_REASON) if own else "it cannot be filled in"
            raise invalid("messages", f"the model's chat template refuses them: {reason}") from None
        if not goes_on:
            return text
        before, mark, _ = text.rpartition(_MARK)
        if not mark:
            raise invalid("continue_final_message", "the model's chat template leaves the last message out")
        return before + messages[-1]["content"]

    def _made(
        self, param: str, text: str | None, ids: list[int], messages: tuple[dict[str, str], ...] = ()
    ) -> Prompt:
        if not ids:
            raise invalid(param, "got no token, expected at least one")
        self._check_length(param, ids)
        return Prompt(text, ids, messages)

    def _checked(self, ids: Sequence[Any]) -> list[int]:
        for token in ids:
            if not 0 <= token < self._vocabulary:
                problem = f"got the token id {given(token)}, expected 0 to {self._vocabulary - 1}"
                raise invalid("prompt", problem)
        return list(ids)

    def _check_length(self, param: str, value: str | Sequence[int]) -> None:
        """Checks the length of a text that is not read yet, or of ids."""
        what, most = ("characters", self._characters) if isinstance(value, str) else ("tokens", self._tokens)
        if len(value) > most:
            message = f"{param}: got {len(value)} {what}, expected at most {most}{self._why}"
            raise APIError(400, message, param, "context_length_exceeded")


def _longest(tokenizer: Any) -> int:
    """Returns the characters of the longest token."""
    return max(map(len, tokenizer.get_vocab()), default=1)
