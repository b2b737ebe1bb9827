"""its-hub's algorithms on a decoder of this process.

Needs `its_hub[lm]`, in a version that was tested (`TESTED` of `tts_decode.extras`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from tts_kernels.checks import shown

from ..core.params import SamplingParams, mix
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
_MARK = "\N{WHITE SQUARE}last-message\N{WHITE SQUARE}"  # stands for a message while the template is filled in
# What asks for nothing, of arguments that are not served.
_HARMLESS: dict[str, tuple[Any, ...]] = {
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "response_format": (None, {"type": "text"}),
}


class TreeLanguageModel(AbstractLanguageModel):
    """What its-hub's algorithms take as their language model.

    All calls that wait at a time are decoded in one batch. A call whose last message is an assistant's goes
    on with it, and shares the KV of the earlier call that gave this text: finished texts stay resident until
    others are newer or their pages are needed. Calls belong into one event loop at a time.

    Args:
        decoder: its tokenizer needs a chat template.
        sampling: for what a call does not give; default: the decoder's. Each call draws by its own number and
            the seed.
        system_prompt: a message before those of each call.
        retain: finished texts that stay resident.

    Attributes:
        prompt_tokens, cached_tokens, completion_tokens: of all calls so far: of their prompts, of those that
            were resident, sampled.
    """

    def __init__(
        self,
        decoder: TreeDecoder,
        *,
        sampling: SamplingParams | None = None,
        system_prompt: str | None = None,
        retain: int = 256,
    ) -> None:
        self.decoder = decoder
        self.sampling = decoder.sampling if sampling is None else sampling
        self.prompt_tokens = self.cached_tokens = self.completion_tokens = 0
        self._system = [] if system_prompt is None else [{"role": "system", "content": system_prompt}]
        self._texts = RetainedTexts(decoder, retain, _RETAINED_TOKENS)
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
        """The answer to a conversation, or those to a list of conversations, which are decoded together.

        temperature: for all, or one for each. options: as of `agenerate_single`.
        """
        single = bool(messages) and not isinstance(messages[0], list)
        batch = [messages] if single else messages
        each = temperature if isinstance(temperature, Sequence) else [temperature] * len(batch)
        if len(each) != len(batch):
            raise ValueError(
                f"temperature: got {len(each)} numbers for {len(batch)} conversations, expected one each"
            )
        answers = await gather(
            self.agenerate_single(one, stop, temperature=its, **options)
            for one, its in zip(batch, each, strict=True)
        )
        return answers[0] if single else answers

    async def agenerate_single(
        self,
        messages: Sequence[Any],
        stop: str | Sequence[str] | None = None,
        *,
        temperature: float | None = None,
        max_completion_tokens: int | None = None,
        include_stop_str_in_output: bool | None = None,
        usage_accumulator: Any = None,
        loop: Any = None,
        **refused: Any,
    ) -> dict[str, Any]:
        """The answer to one conversation: `{"role": "assistant", "content": text}`.

        Args:
            messages: its-hub's `ChatMessage` or dicts, of texts. stop: a text that ends the answer, or
                several, with which it ends if `include_stop_str_in_output` says so.
            usage_accumulator: an its-hub `GenerationUsage`, to which the tokens are added.
            loop: not used; the running one serves.
            refused: `tools`, `tool_choice` and `response_format`, whose values must ask for nothing.
        """
        for name, value in refused.items():
            if name not in _HARMLESS:
                raise TypeError(f"{name}: unknown argument")
            if value not in _HARMLESS[name]:
                raise ValueError(f"{name}: got {shown(value)}, expected None, as it is not served")
        self._calls += 1
        given: dict[str, Any] = {
            "temperature": temperature,
            "max_tokens": max_completion_tokens,
            "stop": stop,
        }
        params = replace(
            self.sampling,
            seed=mix(self.sampling.seed, self._calls),
            **{name: value for name, value in given.items() if value is not None},
        )
        text = self._prompt(messages)
        ids = self._retained.ids(text, self.decoder.token_ids(text))
        branch = await self.decoder.root(ids, params)
        try:
            step = await branch.step(max_step_tokens=params.max_tokens)
            self._retained.keep(branch, len(ids), text)
            answer = step.text
            if step.reason == "stop_string":
                answer = _cut(branch, answer, params.stop, include=bool(include_stop_str_in_output))
        finally:
            branch.release()
        self.prompt_tokens += len(ids)
        self.cached_tokens += branch.cached_tokens
        self.completion_tokens += len(step.tokens)
        if usage_accumulator is not None:
            usage_accumulator.add(len(ids), len(step.tokens))
        return {"role": "assistant", "content": answer}

    def generate(self, messages: Sequence[Any], *arguments: Any, **options: Any) -> Any:
        """`agenerate` for code without an event loop."""
        return self.decoder.run(self.agenerate(messages, *arguments, **options))

    def clear(self) -> None:
        """Gives back the pages of the texts that are kept resident."""
        self._texts.clear()

    def _prompt(self, messages: Sequence[Any]) -> str:
        chat = [*self._system, *(_plain(index, message) for index, message in enumerate(messages))]
        if not chat or chat[-1]["role"] != "assistant":
            return self._rendered(chat, add_generation_prompt=True)
        # The last message goes on letter by letter, whatever the template does to ends of messages.
        last: str = chat[-1]["content"]
        return self._rendered([*chat[:-1], {**chat[-1], "content": _MARK}]).rpartition(_MARK)[0] + last

    def _rendered(self, chat: Sequence[Any], **options: bool) -> str:
        text: str = self.decoder.tokenizer.apply_chat_template(chat, tokenize=False, **options)
        return text


def _plain(index: int, message: Any) -> dict[str, Any]:
    fields = message if isinstance(message, Mapping) else vars(message)
    given = {name: value for name, value in fields.items() if value is not None}
    content = given.get("content")
    if isinstance(content, list) and all(part.get("type") == "text" for part in content):
        given["content"] = "".join(part["text"] for part in content)
    if set(given) != {"role", "content"} or not isinstance(given["content"], str):
        raise ValueError(f"messages[{index}]: got {shown(message)}, expected a role and a text, and no tools")
    return given


def _cut(branch: TreeBranch, text: str, stops: Sequence[str], *, include: bool) -> str:
    last = len(branch.text_from(branch.length - 1))  # characters in which the stop string ends
    return cut_at_stop(text, last, stops, include=include)[0]
