"""Runs its-hub's algorithms on a decoder of this process.

Needs `its_hub[lm]`, in a version that was tested (`TESTED` of `tts_decode.extras`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tts_kernels.checks import flag, instance, integer, shown

from ..core.naming import named
from ..core.params import SamplingParams, mix
from ..core.prompts import chat_text
from ..core.running import gather
from ..decoding.branch import TreeBranch
from ..decoding.decoder import TreeDecoder
from ..decoding.retained import RetainedTexts
from ..decoding.stop_text import cut_at_stop
from ..extras import require, require_tested

require("its_hub")
require_tested("its_hub")
from its_hub.api import AbstractLanguageModel  # noqa: E402

_RETAINED_TOKENS = 1 << 20
_OPTIONS = (
    "stop",
    "temperature",
    "max_completion_tokens",
    "include_stop_str_in_output",
    "usage_accumulator",
)
_ROLES = ("system", "developer", "user", "assistant")  # same as in the server; tools are not served
_MARK = "\N{WHITE SQUARE}last-message\N{WHITE SQUARE}"  # placeholder for a message in a template
# Values that ask for nothing, of arguments that are not served.
_HARMLESS: dict[str, tuple[Any, ...]] = {
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "response_format": (None, {"type": "text"}),
}


@dataclass(frozen=True)
class _Call:
    """One call: the text of its conversation, its ids, and its continuation. usage: an accumulator or
    None."""

    text: str
    ids: list[int]
    params: SamplingParams
    include_stop: bool
    usage: Any


class TreeLanguageModel(AbstractLanguageModel):
    """The language model that its-hub's algorithms take.

    All calls that wait at a time are decoded in one batch. A call whose last message is an assistant's
    continues it, and shares the KV of the earlier call that returned this text: finished texts stay resident
    until newer ones displace them or their pages are needed. Use one event loop at a time.

    Args:
        decoder: its tokenizer needs a chat template.
        sampling: for parameters that a call does not give; default: the decoder's. Each call draws with its
            own number and the seed.
        system_prompt: a message before those of each call.
        retain: number of finished texts that stay resident.

    Attributes:
        prompt_tokens, cached_tokens, completion_tokens: over all calls so far: of their prompts, resident
            ones among these, sampled.
    """

    def __init__(
        self,
        decoder: TreeDecoder,
        *,
        sampling: SamplingParams | None = None,
        system_prompt: str | None = None,
        retain: int = 256,
    ) -> None:
        self.decoder = instance("decoder", decoder, TreeDecoder)
        if not getattr(decoder.tokenizer, "chat_template", None):
            raise ValueError(
                "decoder: got a tokenizer without a chat template, expected one; set "
                "decoder.tokenizer.chat_template"
            )
        self.sampling = (
            decoder.sampling if sampling is None else instance("sampling", sampling, SamplingParams)
        )
        if system_prompt is not None:
            instance("system_prompt", system_prompt, str)
        self.prompt_tokens = self.cached_tokens = self.completion_tokens = 0
        self._system = [] if system_prompt is None else [{"role": "system", "content": system_prompt}]
        self._texts = RetainedTexts(decoder, integer("retain", retain, 0), _RETAINED_TOKENS)
        self._retained = self._texts.of("")
        self._calls = 0

    async def agenerate(
        self,
        messages: Sequence[Any],
        stop: str | Sequence[str] | None = None,
        *,
        temperature: float | Sequence[float | None] | None = None,
        **options: Any,
    ) -> dict[str, Any] | list[dict[str, Any]]:
        """Returns the answer to a conversation, or to each of a list of conversations, decoded together.

        Args:
            temperature: for all, or one for each.
            options: as for `agenerate_single`.
        """
        _check_list(messages)
        single = bool(messages) and not isinstance(messages[0], (list, tuple))
        batch = [messages] if single else messages
        several = isinstance(temperature, Sequence) and not isinstance(temperature, str)
        each: Any = temperature if several else [temperature] * len(batch)
        if len(each) != len(batch):
            raise ValueError(
                f"temperature: got {len(each)} numbers for {len(batch)} conversations, expected one each"
            )
        calls = [
            self._call(one, stop, temperature=its, **options) for one, its in zip(batch, each, strict=True)
        ]
        answers = await gather(self._answer(call) for call in calls)
        return answers[0] if single else answers

    async def agenerate_single(
        self, messages: Sequence[Any], stop: str | Sequence[str] | None = None, **options: Any
    ) -> dict[str, Any]:
        """Returns the answer to one conversation: `{"role": "assistant", "content": text}`.

        Args:
            messages: its-hub's `ChatMessage` or dicts, of texts.
            stop: a text that ends the answer, or several; the answer includes it with
                `include_stop_str_in_output`.
            options: `temperature`, `max_completion_tokens`, `include_stop_str_in_output`, and
                `usage_accumulator`, an its-hub `GenerationUsage` to which the tokens are added. `loop` is
                ignored; the running one is used. `tools`, `tool_choice` and `response_format` must ask for
                nothing.

        Raises:
            TypeError, ValueError: an argument is not as described; the message names it, and nothing has
                changed.
            PromptTooLongError: the model or its pages cannot hold the conversation; nothing has changed.
        """
        return await self._answer(self._call(messages, stop, **options))

    def _call(
        self,
        messages: Sequence[Any],
        stop: str | Sequence[str] | None,
        *,
        temperature: float | None = None,
        max_completion_tokens: int | None = None,
        include_stop_str_in_output: bool | None = None,
        usage_accumulator: Any = None,
        loop: Any = None,
        **refused: Any,
    ) -> _Call:
        """Returns the checked arguments of `agenerate_single`."""
        for name, value in refused.items():
            if name not in _HARMLESS:
                raise TypeError(f"{name}: unknown argument, expected one of {', '.join(_OPTIONS)}")
            if not any(type(value) is type(harmless) and value == harmless for harmless in _HARMLESS[name]):
                raise ValueError(f"{name}: got {shown(value)}, expected None, as it is not served")
        if max_completion_tokens is not None:
            integer("max_completion_tokens", max_completion_tokens, 1)
        if include_stop_str_in_output is not None:
            flag("include_stop_str_in_output", include_stop_str_in_output)
        if usage_accumulator is not None and not callable(getattr(usage_accumulator, "add", None)):
            raise TypeError(
                f"usage_accumulator: got {shown(usage_accumulator)}, expected a GenerationUsage of its-hub"
            )
        text = self._prompt(messages)
        with named("messages"):
            ids = self.decoder.token_ids(text)
            self.decoder.runtime.check_prompt(ids)
        given: dict[str, Any] = {
            "temperature": temperature,
            "max_tokens": max_completion_tokens,
            "stop": stop,
        }
        params = replace(self.sampling, **{name: value for name, value in given.items() if value is not None})
        return _Call(text, ids, params, bool(include_stop_str_in_output), usage_accumulator)

    async def _answer(self, call: _Call) -> dict[str, Any]:
        self._calls += 1
        text, params = call.text, replace(call.params, seed=mix(call.params.seed, self._calls))
        ids = self._retained.ids(text, call.ids)
        branch = await self.decoder.root(ids, params)
        try:
            step = await branch.step(max_step_tokens=params.max_tokens)
            self._retained.keep(branch, len(ids), text)
            answer = step.text
            if step.reason == "stop_string":
                answer = _cut(branch, answer, params.stop, include=call.include_stop)
        finally:
            branch.release()
        self.prompt_tokens += len(ids)
        self.cached_tokens += branch.cached_tokens
        self.completion_tokens += len(step.tokens)
        if call.usage is not None:
            call.usage.add(len(ids), len(step.tokens))
        return {"role": "assistant", "content": answer}

    def generate(self, messages: Sequence[Any], *arguments: Any, **options: Any) -> Any:
        """Runs `agenerate` for code without an event loop."""
        return self.decoder.run(self.agenerate(messages, *arguments, **options))

    def clear(self) -> None:
        """Frees the pages of the texts that are kept resident."""
        self._texts.clear()

    def _prompt(self, messages: Sequence[Any]) -> str:
        _check_list(messages)
        if not messages:
            raise ValueError("messages: got none, expected one or more")
        chat = [*self._system, *(_plain(index, message) for index, message in enumerate(messages))]
        if chat[-1]["role"] != "assistant":
            return chat_text(self.decoder.tokenizer, chat, name="messages")
        # The last message is continued letter by letter, whatever the template does to ends of messages.
        marked = [*chat[:-1], {**chat[-1], "content": _MARK}]
        text = chat_text(self.decoder.tokenizer, marked, name="messages", add_generation_prompt=False)
        before, mark, _ = text.rpartition(_MARK)
        if not mark:
            raise ValueError(
                f"messages[{len(messages) - 1}]: got one of the assistant, which the model's chat template "
                "leaves out; set decoder.tokenizer.chat_template"
            )
        return before + str(chat[-1]["content"])


def _check_list(messages: Any) -> None:
    """Raises TypeError unless it is a list of messages or of conversations."""
    if isinstance(messages, str) or not isinstance(messages, Sequence):
        raise TypeError(
            f"messages: got {shown(messages)}, expected a list of messages; pass "
            '[{"role": "user", "content": text}]'
        )


def _plain(index: int, message: Any) -> dict[str, Any]:
    if not isinstance(message, Mapping) and not hasattr(message, "role"):
        raise TypeError(
            f"messages[{index}]: got {shown(message)}, expected its-hub's ChatMessage, or a dict with a role "
            "and a content"
        )
    fields = message if isinstance(message, Mapping) else vars(message)
    given = {name: value for name, value in fields.items() if value is not None}
    content = given.get("content")
    if isinstance(content, list) and all(_is_text(part) for part in content):
        given["content"] = "".join(part["text"] for part in content)
    if set(given) != {"role", "content"} or not all(isinstance(value, str) for value in given.values()):
        raise ValueError(f"messages[{index}]: got {shown(message)}, expected a role and a text, and no tools")
    if given["role"] not in _ROLES:
        raise ValueError(
            f"messages[{index}]: got the role {shown(given['role'])}, expected one of {', '.join(_ROLES)}"
        )
    return given


def _is_text(part: Any) -> bool:
    return isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str)


def _cut(branch: TreeBranch, text: str, stops: Sequence[str], *, include: bool) -> str:
    last = len(branch.text_from(branch.length - 1))  # characters in which the stop string ends
    return cut_at_stop(text, last, stops, include=include)[0]
