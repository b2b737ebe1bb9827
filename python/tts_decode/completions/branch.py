"""Branches that are text, with steps that are completion calls."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Coroutine, Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeVar

import torch
from torch import Tensor

from tts_kernels.checks import integer

from ..core.interfaces import Decoder
from ..core.params import SamplingParams, mix
from ..core.path import Path
from ..core.prompts import Prompt, question_in
from ..core.state import BranchState
from ..core.step import FINAL_REASONS, Step
from ..core.stop_when import StopWhen
from ..errors import BranchReleasedError
from .calls import Calls, TokenAllowance, unsupported, unsupported_call
from .completion import Completion, CompletionRequest

if TYPE_CHECKING:
    from ..core.prompts import Prompt

T = TypeVar("T")

# Fields of SamplingParams that a completion request carries, or that the branch handles itself.
_SERVED = {
    *("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "logit_bias"),
    *("frequency_penalty", "presence_penalty"),
    *("seed", "max_tokens", "max_step_tokens", "stop", "stop_when"),
}


class TextBranch(Path):
    """One path from a prompt to a leaf; made only by `TextDecoder.root` and `fork`. Reads like a `Branch`.

    The prompt counts as one token, and so does a forced text (or as the engine counts it, if it can score). A
    cut (`fork(at=)`, `truncate`) is possible at the end of the prompt, of a completion or a forced text,
    before an end token, and between tokens whose texts the engine reported; elsewhere it raises
    `UnsupportedByEngineError`.

    A step is one call of the engine. It requests as many tokens as step, branch and budget allow, so a
    cancelled or failed step leaves nothing in the branch.
    """

    parent: TextBranch | None

    def __init__(
        self,
        decoder: Decoder,
        calls: Calls,
        prompt: Prompt,
        full_text: str,
        tokens: list[int],
        ends: list[int | None],
        sampling: SamplingParams,
        seed: int,
        allowance: TokenAllowance | None,
        parent: TextBranch | None = None,
    ) -> None:
        budget = None if allowance is None else allowance.budget
        super().__init__(calls.next_id(), prompt, tokens, 1, sampling, seed, budget, parent)
        self.decoder = decoder
        self._calls = calls
        self.full_text = full_text
        self._ends = ends  # len(full_text) after each token; None: not known
        self._allowance = allowance
        self._work: asyncio.Future[Any] | None = None  # the call that the branch waits for
        calls.branches.add(self)

    # -- what it holds

    @property
    def text(self) -> str:
        """Text after the prompt."""
        end = self._ends[self.prompt_length - 1]
        return self.full_text[end:]

    @property
    def question(self) -> str:
        """The user's question: the prompt's text or, in a chat, the user's last message."""
        asked = question_in(self.prompt)
        return self.full_text[: self._ends[self.prompt_length - 1]] if asked is None else asked

    def text_from(self, position: int) -> str:
        """Returns the text that `tokens[position:]` add."""
        return self.full_text[self._ends[self._position("position", position) - 1] :]

    def text_ends(self, position: int) -> list[int]:
        """Returns the characters of `text_from(position)` up to the end of each token from there on.

        Returns [] if the engine does not report its tokens' texts.
        """
        begin, ends = self._ends[self._position("position", position) - 1] or 0, self._ends[position:]
        told = [end - begin for end in ends if end is not None]
        return told if len(told) == len(ends) else []

    # -- model work

    async def step(self, **overrides: Any) -> Step:
        """Generates up to the next step boundary; reasons are those of `Branch.step`.

        Args:
            overrides: fields of `SamplingParams` for this step only; `seed` replaces the branch's own.

        Raises:
            UnsupportedByEngineError: a sampling parameter that a completion request cannot carry.
        """
        self.check_idle()
        params = replace(self.sampling, **overrides) if overrides else self.sampling
        for field in fields(params):
            if field.name not in _SERVED and getattr(params, field.name) != field.default:
                unsupported(f"SamplingParams.{field.name}", "leave it at its default")
        if self.finish_reason is not None:
            return Step("", (), (), (), self.finish_reason)
        if len(self.tokens) > self.prompt_length:
            for name in ("frequency_penalty", "presence_penalty"):
                if getattr(params, name):
                    unsupported(
                        f"SamplingParams.{name} over several steps",
                        "an engine counts the tokens of one call: raise max_step_tokens and give no stop, or "
                        "leave it at 0",
                    )
        seed = overrides.get("seed", self.seed)
        step: Step = await self._exclusively(self._generate(params, seed))
        return step

    def stream(self, **overrides: Any) -> NoReturn:
        unsupported("tokens as they come (Branch.stream)", "await Branch.step, a call each")

    async def replay(self, step: Step) -> None:
        """Appends a step that an earlier `step()` returned, without a call; the budget pays for it.

        The step cannot be cut inside.
        """
        self.check_idle()
        self.check_open()
        if self.budget is not None:
            self.budget.count(len(step.tokens))
        if step.reason in FINAL_REASONS:
            self.finish_reason = step.reason
        if step.tokens:
            self._take(step, ())

    async def extend(self, tokens: str | Sequence[int]) -> Tensor:
        """Appends forced text and returns float32 [n] log-probabilities, nats.

        One per token if the engine can score, otherwise one NaN for the text, or nothing for an empty text. A
        finished branch is open again afterwards; the prompt that the engine then gets does not include the
        text of an end token.
        """
        self.check_idle()
        text = _text_only(tokens)
        if not text:
            return torch.zeros(0)
        logprobs = [math.nan]
        if self._calls.scores:
            logprobs = await self._exclusively(self._calls.logprobs_of(self.full_text, text))
        count = len(logprobs)
        self._append(text, (-1,) * count, logprobs, [math.nan] * count, ())
        self.finish_reason = None
        return torch.tensor(logprobs, dtype=torch.float32)

    async def logprobs_of(self, tokens: str | Sequence[int]) -> Tensor:
        """Returns the log-probabilities of a continuation that is not kept: float32 [n], nats, one per token.

        Several such calls may run at a time.

        Raises:
            UnsupportedByEngineError: token ids; or the decoder was made without `score`.
        """
        self.check_live()
        text = _text_only(tokens)
        if not text:
            return torch.zeros(0)
        logprobs = await self._calls.logprobs_of(self.full_text, text)
        self.check_live()
        return torch.tensor(logprobs, dtype=torch.float32)

    async def next_logprobs(self, token_ids: Sequence[int] | None = None) -> Tensor:
        unsupported("log-probabilities by token id", "score texts with logprobs_of")

    # -- tree work, immediate

    def fork(self, n: int = 1, at: int | None = None, seeds: Sequence[int] | None = None) -> list[TextBranch]:
        """Returns `n` children, with the same seeds, steps and scores as from `Branch.fork`."""
        self.check_live()
        at = self._position("at", at)
        seeds = self.child_seeds(n, seeds)
        self.fork_count += 1
        text = self.full_text[: self._ends[at - 1]]
        children = []
        for seed in seeds:
            child = TextBranch(
                self.decoder,
                self._calls,
                self.prompt,
                text,
                self.tokens[:at],
                self._ends[:at],
                self.sampling,
                seed,
                self._allowance,
                parent=self,
            )
            child.copy_history(self, at)
            children.append(child)
        return children

    def truncate(self, length: int) -> None:
        """Rolls back to `tokens[:length]`.

        Steps and scores that end beyond it are dropped too; a branch that loses tokens is no longer finished.
        """
        self.check_idle()
        length = self._position("length", length)
        self.copy_history(self, length)
        self.full_text = self.full_text[: self._ends[length - 1]]
        del self.tokens[length:], self._ends[length:]

    def release(self) -> None:
        """Gives up the branch; a call that it is waiting for is cancelled."""
        self.check_live()
        self.released = True
        self._calls.branches.discard(self)
        if self._work is not None:
            self._work.cancel()

    # -- what needs a model of our own

    async def read(self, tokens: str | Sequence[int], rows: Sequence[int]) -> Tensor:
        unsupported_call("Branch.read")

    async def extend_embeds(self, embeds: Tensor) -> Tensor:
        unsupported_call("Branch.extend_embeds")

    async def layer_states(self, layers: Sequence[int] | Literal["all"] = "all") -> Tensor:
        unsupported_call("Branch.layer_states")

    async def recompute(self) -> None:
        """Does nothing: the engine manages its own weights."""

    def text_of(self, tokens: Sequence[int]) -> str:
        unsupported("texts of token ids", "use texts")

    def copy(self, at: int | None = None) -> TextBranch:
        unsupported_call("Branch.copy")

    def evict(self, keep: int, *, sink: int = 1, recent: int = 4) -> int:
        unsupported_call("Branch.evict")

    def compress(self, keep: int, *, sink: int = 1, recent: int = 4, observe: int = 32) -> int:
        unsupported_call("Branch.compress")

    def snapshot(self) -> BranchState:
        unsupported_call("Branch.snapshot")

    # -- helpers

    async def _generate(self, params: SamplingParams, seed: int) -> Step:
        left = params.max_tokens - (len(self.tokens) - self.prompt_length)
        if left <= 0:
            return self._end("max_tokens")
        wanted = min(left, params.max_step_tokens)
        granted = wanted if self._allowance is None else await self._allowance.take(wanted)
        if not granted:
            return self._end("budget")
        used = 0
        try:
            completion = await self._calls.complete(
                CompletionRequest(
                    prompt=self.full_text,
                    max_tokens=granted,
                    temperature=params.temperature,
                    top_p=params.top_p,
                    stop=tuple(params.stop),
                    seed=_call_seed(seed, len(self.tokens)),
                    logprobs=self._calls.logprobs,
                    top_k=params.top_k,
                    min_p=params.min_p,
                    repetition_penalty=params.repetition_penalty,
                    frequency_penalty=params.frequency_penalty,
                    presence_penalty=params.presence_penalty,
                    logit_bias=params.bias_pairs,
                )
            )
            used = len(completion.ids)
        finally:
            if self._allowance is not None:
                self._allowance.give_back(granted, used)
        self.check_live()
        reason: str = completion.finish_reason
        if self.finish_reason is not None:  # declared meanwhile
            reason = self.finish_reason
        elif reason == "length":
            if 0 < len(completion.tokens) < granted or not completion.ids:
                reason = "length"  # the engine's last position
            elif granted == left:
                reason = "max_tokens"
            elif granted < wanted or (self.budget is not None and self.budget.exhausted):
                reason = "budget"
            else:
                reason = "max_step_tokens"
        if params.stop_when is not None and self.finish_reason is None:
            ended = self._cut_when(params.stop_when, completion)
            if ended is not None:
                return self._end("stop_when", ended)
        return self._end(reason, completion)

    def _cut_when(self, stop_when: StopWhen, completion: Completion) -> Completion | None:
        """Returns the completion up to the first token at which the branch is at its end; None if it is not.

        If the completion reports no tokens, it is cut by characters.
        """
        pieces = completion.token_texts or ((completion.text,) if completion.tokens else completion.text)
        if not completion.token_texts and len(completion.tokens) > 1 + (completion.finish_reason == "eos"):
            unsupported(
                "SamplingParams.stop_when where it tells tokens without their texts",
                "have `complete` return token_texts, or leave it at None",
            )
        text, before = "", self.text
        for count, piece in enumerate(pieces, start=1):
            text += piece
            if piece and stop_when(before + text):
                told = count if completion.token_texts else 1
                return Completion(
                    text,
                    "length",
                    completion.tokens[:told],
                    completion.logprobs[:told],
                    completion.entropies[:told],
                    completion.token_texts[:told],
                )
        return None

    def _end(self, reason: str, completion: Completion | None = None) -> Step:
        """Appends a completion as a step."""
        if reason in FINAL_REASONS:
            self.finish_reason = reason
        if completion is None or not completion.ids:
            return Step("", (), (), (), reason)
        unknown = (math.nan,) * len(completion.ids)
        logprobs, entropies = completion.logprobs or unknown, completion.entropies or unknown
        step = Step(completion.text, completion.ids, logprobs, entropies, reason)
        self._take(step, completion.token_texts)
        return step

    def _take(self, step: Step, texts: Sequence[str]) -> None:
        self._append(step.text, step.tokens, step.logprobs, step.entropies, texts, step.reason == "eos")
        self.record_step(step)

    def _append(
        self,
        text: str,
        tokens: Sequence[int],
        logprobs: Sequence[float],
        entropies: Sequence[float],
        texts: Sequence[str],
        eos: bool = False,
    ) -> None:
        end = len(self.full_text)
        for piece in texts:
            end += len(piece)
            self._ends.append(end)
        if not texts:
            known = 1 + (eos and len(tokens) > 1)  # an end token has no text
            self._ends += [None] * (len(tokens) - known)
            self._ends += [end + len(text)] * known
        self.full_text += text
        self.tokens += tokens
        self.logprobs += logprobs
        self.entropies += entropies

    def _position(self, name: str, value: int | None) -> int:
        if value is None:
            return len(self.tokens)
        value = integer(name, value, 1, len(self.tokens))
        if self._ends[value - 1] is None:
            below = max(i for i, end in enumerate(self._ends[:value], 1) if end is not None)
            unsupported(
                f"a cut at {name}={value}, inside a step whose token texts it did not tell",
                f"cut at a step's end, as at {below}",
            )
        return value

    async def _exclusively(self, work: Coroutine[Any, Any, T]) -> T:
        """Waits for `work` as the branch's only call; `release` cancels it."""
        task: asyncio.Task[T] = asyncio.ensure_future(work)
        self._work, self.busy = task, True
        try:
            return await task
        except asyncio.CancelledError:
            if self.released:
                raise BranchReleasedError(f"branch {self.id} was released while it waited") from None
            raise
        finally:
            self._work, self.busy = None, False


def _text_only(tokens: str | Sequence[int]) -> str:
    if not isinstance(tokens, str):
        unsupported("token ids", "give text")
    return tokens


def _call_seed(seed: int, position: int) -> int:
    """Returns a seed of 31 bits, which every server accepts.

    It differs at each position, because an engine's generator starts over at each call.
    """
    return mix(seed, position) >> 33
