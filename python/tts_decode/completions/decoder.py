"""Branches backed by text and a completion call: any strategy on an external engine.

A completion call gives less than a KV tree. Anything beyond it raises `UnsupportedByEngineError`. Unknown
log-probabilities and entropies are NaN, unknown token ids -1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NoReturn
from weakref import WeakValueDictionary

from tts_kernels.checks import instance

from ..core.budget import Budget
from ..core.checks import checked_count
from ..core.params import SamplingParams
from ..core.prompts import Prompt, check_messages, wrong_prompt
from ..core.running import Runner
from ..core.state import BranchState
from ..core.stats import DecoderStats
from ..cost.forward import StepCost
from .branch import TextBranch
from .calls import Calls, TokenAllowance, unsupported, unsupported_call
from .completion import Complete, Score

Messages = Sequence[Mapping[str, Any]]


class TextDecoder(Runner):
    """Replaces a `TreeDecoder`, over an engine that continues texts.

    Args:
        complete: async function from a `CompletionRequest` to its `Completion`. Its exceptions reach the
            strategy; the branch stays as it was.
        score: async function (prompt, continuations) -> for each continuation its tokens' log-probabilities,
            if the engine has one; used by `Branch.logprobs_of` and `Branch.extend`.
        render: turns chat messages (dicts of role and content) into text. Default: lines of "User: ..." and
            "Assistant: ...", which no chat model was trained on: pass the model's own template.
        sampling: default parameters of `root`.
        max_concurrency: maximum number of concurrent calls; None for no limit.
        logprobs: whether to ask the engine for log-probabilities.

    Attributes:
        knows_chat: whether `render` was given.
        max_positions: None, the engine knows. eos_token_ids: empty, ends are reported as finish reasons.
    """

    max_positions = None
    eos_token_ids: frozenset[int] = frozenset()
    track_mass = False

    def __init__(
        self,
        complete: Complete,
        *,
        score: Score | None = None,
        render: Callable[[Messages], str] | None = None,
        sampling: SamplingParams | None = None,
        max_concurrency: int | None = None,
        logprobs: bool = True,
    ) -> None:
        for name, function in (("complete", complete), ("score", score), ("render", render)):
            if not callable(function) and (function is not None or name == "complete"):
                raise TypeError(f"{name}: got {type(function).__name__}, expected a function")
        if max_concurrency is not None:
            max_concurrency = checked_count("max_concurrency", max_concurrency)
        sampling = SamplingParams() if sampling is None else sampling
        self.sampling = instance("sampling", sampling, SamplingParams)
        self.knows_chat = render is not None
        self._calls = Calls(complete, score, max_concurrency, logprobs=logprobs)
        self._render = render or render_turns
        self._allowances: WeakValueDictionary[int, TokenAllowance] = WeakValueDictionary()  # by budget id

    @property
    def keep_hidden(self) -> int:
        return 0

    @keep_hidden.setter
    def keep_hidden(self, count: int) -> None:
        if count:
            unsupported("hidden states", "give the strategy an embedding of its own")

    @property
    def complete(self) -> Complete:
        """The function that it was made with."""
        return self._calls.function

    # -- branches

    async def root(
        self, prompt: Prompt, sampling: SamplingParams | None = None, budget: Budget | None = None
    ) -> TextBranch:
        """Returns the branch at the end of a prompt; does not call the engine yet.

        Args:
            prompt: text or chat messages; it counts as one token.
            sampling: default: the decoder's.
            budget: shared by every branch forked from this root. Concurrent calls stay within its tokens by
                waiting for each other; its seconds are checked before each call.

        Raises:
            TypeError, ValueError: an argument is of the wrong type, or the prompt is empty.
            UnsupportedByEngineError: a prompt of token ids; a cost budget.
        """
        text = self._prompt_text(prompt)
        sampling = self.sampling if sampling is None else instance("sampling", sampling, SamplingParams)
        allowance = None
        if budget is not None:
            instance("budget", budget, Budget)
            if budget.max_cost is not None:
                unsupported("budget.max_cost", "limit max_tokens or max_seconds")
            budget.start()
            allowance = self._allowances.setdefault(id(budget), TokenAllowance(budget))
        return TextBranch(
            self, self._calls, prompt, text, [-1], [len(text)], sampling, sampling.seed, allowance
        )

    def stats(self) -> DecoderStats:
        """Calls (`steps`), tokens of their completions and the time during which any was running; no KV."""
        calls = self._calls
        return DecoderStats(
            steps=calls.completions,
            generated_tokens=calls.tokens,
            forward_tokens=calls.tokens,
            seconds=calls.seconds,
            cost=StepCost(),
            branches=len(calls.branches),
            logical_tokens=0,
            unique_tokens=0,
            resident_bytes=0,
            peak_bytes=0,
            page_bytes=0,
            page_size=0,
            pins=0,
        )

    def resident_bytes(self, branches: Iterable[TextBranch]) -> int:
        """Returns 0: the engine's KV is unknown."""
        return 0

    # -- what needs a model of our own

    def token_ids(self, text: str) -> list[int]:
        unsupported("token ids (token_ids)", "use texts")

    def pin(self, branch: TextBranch, at: int | None = None) -> NoReturn:
        unsupported_call("TreeDecoder.pin")

    async def restore(self, state: BranchState, budget: Budget | None = None) -> NoReturn:
        unsupported_call("TreeDecoder.restore")

    def evict(self, branches: Iterable[TextBranch], keep: int) -> NoReturn:
        unsupported_call("TreeDecoder.evict")

    # -- prompts

    def _prompt_text(self, prompt: Prompt) -> str:
        if isinstance(prompt, str):
            text = prompt
        elif isinstance(prompt, Mapping) or not isinstance(prompt, Iterable):
            raise wrong_prompt(prompt, "text or chat messages")
        else:
            items: list[Any] = list(prompt)
            if not all(isinstance(item, Mapping) for item in items):
                unsupported("a prompt of token ids", "give text or chat messages")
            check_messages(items, tools=False)
            text = self._render(items) if items else ""
        if not text:
            raise ValueError("prompt: got no text, expected at least one character")
        return text


def render_turns(messages: Messages) -> str:
    """Renders chat messages as plain turns "Role: content", ending where the assistant's next one begins."""
    turns = [f"{message['role'].capitalize()}: {message['content']}" for message in messages]
    return "\n".join([*turns, "Assistant:"])
