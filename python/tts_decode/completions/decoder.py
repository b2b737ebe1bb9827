"""Branches backed by text and a completion call: any strategy on an engine that is not ours.

A completion call gives less than a KV tree. What a strategy asks beyond it raises `UnsupportedByEngine`; what
is merely unknown is NaN (log-probabilities, entropies) or -1 (token ids).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet, WeakValueDictionary

from ..core.budget import Budget
from ..core.params import SamplingParams
from ..core.prompts import Prompt
from ..core.running import Runner
from ..core.stats import DecoderStats
from ..cost.forward import StepCost
from ..errors import EngineError
from .branch import Purse, TextBranch, unsupported
from .completion import Complete, Completion, CompletionRequest, Score

Messages = Sequence[Mapping[str, Any]]


class TextDecoder(Runner):
    """Stands where a `TreeDecoder` stands, over an engine that continues texts.

    Args:
        complete: async function from a `CompletionRequest` to its `Completion`. What it raises goes to the
            strategy; the branch stays as it was.
        score: async function (prompt, continuations) -> for each continuation its tokens' log-probabilities,
            where the engine has one; it serves `Branch.logprobs_of` and what `Branch.extend` returns.
        render: text of chat messages (dicts of role and content). Default: lines of "User: ..." and
            "Assistant: ...", which no chat model was trained on: give the model's own template.
        sampling: default parameters of `root`.
        max_concurrency: calls in flight at most; None for no limit.
        logprobs: whether to ask the engine for log-probabilities.

    Attributes:
        tokenizer: stands for none: `chat_template` is `render` if one was given, else None; anything else
            raises `UnsupportedByEngine`.
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
                raise TypeError(f"{name} must be a function, got {type(function).__name__}")
        if sampling is not None and not isinstance(sampling, SamplingParams):
            raise TypeError(f"sampling must be SamplingParams, got {type(sampling).__name__}")
        if max_concurrency is not None and (
            isinstance(max_concurrency, bool) or not isinstance(max_concurrency, int) or max_concurrency < 1
        ):
            raise ValueError(f"max_concurrency must be a positive integer or None, got {max_concurrency!r}")
        self.complete = complete
        self.sampling = sampling or SamplingParams()
        self.tokenizer = _NoTokenizer(render)
        self.max_concurrency = max_concurrency
        self._score = score
        self._logprobs = logprobs
        self._render = render or render_turns
        self._branches: WeakSet[TextBranch] = WeakSet()
        self._purses: WeakValueDictionary[int, Purse] = WeakValueDictionary()  # by id of the budget
        self._ids = 0
        self._calls = self._tokens = self._running = 0
        self._seconds = self._since = 0.0
        self._slots: tuple[asyncio.AbstractEventLoop, asyncio.Semaphore] | None = None

    @property
    def keep_hidden(self) -> int:
        return 0

    @keep_hidden.setter
    def keep_hidden(self, count: int) -> None:
        if count:
            unsupported("hidden states", "give the strategy an embedding of its own")

    # -- branches

    async def root(
        self, prompt: Prompt, sampling: SamplingParams | None = None, budget: Budget | None = None
    ) -> TextBranch:
        """The branch at the end of a prompt; asks nothing of the engine yet.

        Args:
            prompt: text or chat messages; it counts as one token.
            sampling: default: the decoder's.
            budget: shared by every branch forked from this root. Calls in flight keep within its tokens by
                waiting for each other; its seconds are looked at before each call.

        Raises:
            TypeError, ValueError: an argument is of the wrong type, or the prompt is empty.
            UnsupportedByEngine: a prompt of token ids; a budget of cost.
        """
        text = self._prompt_text(prompt)
        sampling = self.sampling if sampling is None else sampling
        if not isinstance(sampling, SamplingParams):
            raise TypeError(f"sampling must be SamplingParams, got {type(sampling).__name__}")
        purse = None
        if budget is not None:
            if not isinstance(budget, Budget):
                raise TypeError(f"budget must be a Budget, got {type(budget).__name__}")
            if budget.max_cost is not None:
                unsupported("budget.max_cost", "limit max_tokens or max_seconds")
            budget.start()
            purse = self._purses.setdefault(id(budget), Purse(budget))
        return TextBranch(self, prompt, text, [-1], [len(text)], sampling, sampling.seed, purse)

    def stats(self) -> DecoderStats:
        """Calls (`steps`), tokens of their completions and the time in which any was under way; no KV."""
        running = time.perf_counter() - self._since if self._running else 0.0
        return DecoderStats(
            steps=self._calls,
            generated_tokens=self._tokens,
            forward_tokens=self._tokens,
            seconds=self._seconds + running,
            cost=StepCost(),
            branches=len(self._branches),
            logical_tokens=0,
            unique_tokens=0,
            resident_bytes=0,
            peak_bytes=0,
            page_bytes=0,
            pins=0,
        )

    def __getattr__(self, name: str) -> Any:
        if name in ("pin", "restore", "evict", "model"):
            unsupported(f"TreeDecoder.{name}", "it needs a model on a TreeDecoder")
        raise AttributeError(f"TextDecoder has no attribute {name!r}")

    def resident_bytes(self, branches: Sequence[TextBranch]) -> int:
        return 0

    # -- the engine

    async def _complete(self, request: CompletionRequest) -> Completion:
        async with self._slot():
            with self._metered():
                completion = await self.complete(request)
        if not isinstance(completion, Completion):
            raise TypeError(f"complete returned a {type(completion).__name__}, expected a Completion")
        request.check(completion)
        self._calls += 1
        self._tokens += len(completion.ids)
        return completion

    async def _log_probs(self, prompt: str, text: str) -> list[float]:
        """One log-probability a token of `text` after `prompt`, nats."""
        if self._score is None:
            unsupported("log-probabilities of a given text", "make the decoder with score=")
        async with self._slot():
            with self._metered():
                rows = await self._score(prompt, [text])
        if len(rows) != 1 or not len(rows[0]):
            raise EngineError(f"score returned {rows!r} for one continuation; expected one list of numbers")
        return [float(value) for value in rows[0]]

    @contextmanager
    def _metered(self) -> Iterator[None]:
        if not self._running:
            self._since = time.perf_counter()
        self._running += 1
        try:
            yield
        finally:
            self._running -= 1
            if not self._running:
                self._seconds += time.perf_counter() - self._since

    def _slot(self) -> asyncio.Semaphore:
        """To be held during a call: a semaphore serves one event loop only."""
        loop = asyncio.get_running_loop()
        if self._slots is None or self._slots[0] is not loop:
            self._slots = loop, asyncio.Semaphore(self.max_concurrency or 1 << 30)
        return self._slots[1]

    # -- prompts

    def _prompt_text(self, prompt: Prompt) -> str:
        if isinstance(prompt, str):
            text = prompt
        elif isinstance(prompt, Mapping) or not isinstance(prompt, Iterable):
            raise TypeError(f"prompt must be text or chat messages, got {type(prompt).__name__}")
        else:
            items: list[Any] = list(prompt)
            if not all(isinstance(item, Mapping) for item in items):
                unsupported("a prompt of token ids", "give text or chat messages")
            if not all("role" in item and "content" in item for item in items):
                raise ValueError(f"prompt: each chat message needs a role and a content, got {items!r:.200}")
            text = self._render(items) if items else ""
        if not text:
            raise ValueError("prompt is empty: give at least one character")
        return text

    def _next_id(self) -> int:
        self._ids += 1
        return self._ids


class _NoTokenizer:
    """Says clearly that there is none, in place of an AttributeError of None."""

    def __init__(self, chat_template: object) -> None:
        self.chat_template = chat_template

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        unsupported(f"a tokenizer (tokenizer.{name})", "use texts")


def render_turns(messages: Messages) -> str:
    """Chat messages as plain turns "Role: content", ready for the assistant's next one."""
    turns = [f"{message['role'].capitalize()}: {message['content']}" for message in messages]
    return "\n".join([*turns, "Assistant:"])
