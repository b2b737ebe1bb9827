"""Runs a strategy on problems, several of them in one batch, and watches the decoder meanwhile."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from tts_decode import Budget, DecoderStats, SamplingParams, TreeDecoder, gather
from tts_decode.cli.display import mib, short
from tts_decode.cli.errors import UsageError, usage_errors
from tts_decode.rewards import Scorer, mean_logprob, self_evaluation
from tts_decode.search import SearchResult, Strategy
from tts_decode.tasks import Task
from tts_kernels.cost import StepCost

_WATCH_SECONDS = 0.02  # between looks at the decoder; a forward takes about as long or longer
_CORRECT = 0.99  # verifier scores from here on count as solved


@dataclass(frozen=True)
class Settings:
    """How each search samples, what guides it and what it may spend."""

    sampling: SamplingParams
    scorer: str
    budget_tokens: int | None = None
    budget_seconds: float | None = None
    budget_cost: float | None = None
    chat: bool = True


@dataclass(frozen=True)
class Outcome:
    """What a search came to on one task. `scores` has the verifier's score of every candidate, in order."""

    task: Task
    result: SearchResult
    scores: tuple[float, ...] | None

    @property
    def solved(self) -> bool | None:
        """Whether the chosen answer is correct; None if the task has no verifier."""
        verify = self.task.verify
        return None if verify is None else verify(self.result.answer) >= _CORRECT

    @property
    def found(self) -> bool | None:
        """Whether any candidate is correct."""
        return None if self.scores is None else any(score >= _CORRECT for score in self.scores)


@dataclass(frozen=True)
class RunStats:
    """What all searches of a run cost together.

    peak: the decoder's state at the fullest moment seen; peak_bytes: the exact largest KV memory.
    cost: flops and bytes read of all forwards, prompts included.
    """

    seconds: float
    generated_tokens: int
    peak: DecoderStats
    peak_bytes: int
    cost: StepCost
    page_size: int = 16

    @property
    def unshared_bytes(self) -> int:
        """KV memory of the same branches at that moment if each held its own copy of its tokens."""
        return self.peak.logical_tokens * self.peak.page_bytes // self.page_size

    @property
    def tokens_per_second(self) -> float:
        return self.generated_tokens / self.seconds if self.seconds else 0.0

    def to_dict(self) -> dict[str, float]:
        return {
            "seconds": self.seconds,
            "generated_tokens": self.generated_tokens,
            "tokens_per_second": self.tokens_per_second,
            "peak_branches": self.peak.branches,
            "peak_logical_tokens": self.peak.logical_tokens,
            "peak_unique_tokens": self.peak.unique_tokens,
            "peak_kv_bytes": self.peak_bytes,
            "unshared_kv_bytes": self.unshared_bytes,
            "flops": self.cost.flops,
            "read_bytes": self.cost.bytes,
            "eflops": self.cost.combined(),
        }


def summary(stats: RunStats) -> str:
    """What a run cost, in a line."""
    return (
        f"{stats.generated_tokens:,} tokens in {stats.seconds:.1f} s ({stats.tokens_per_second:.0f} tok/s), "
        f"KV peak {mib(stats.peak_bytes)} MiB ({mib(stats.unshared_bytes)} unshared), "
        f"{short(stats.cost.flops / 1e12)} TFLOP, {short(stats.cost.bytes / 1e9)} GB read"
    )


def describe(outcome: Outcome) -> dict[str, Any]:
    """An outcome without the search itself, JSON-ready."""
    task, result = outcome.task, outcome.result
    return {
        "task": task.name,
        "prompt": task.prompt,
        "expected": task.answer,
        "answer": result.answer,
        "solved": outcome.solved,
        "found": outcome.found,
        "candidates": len(result.candidates),
        "correct_candidates": None if outcome.scores is None else sum(s >= _CORRECT for s in outcome.scores),
        "generated_tokens": result.stats.generated_tokens,
        "ets_kv_tokens": result.stats.kv_tokens,
    }


def run_problems(
    decoder: TreeDecoder,
    tasks: Sequence[Task],
    strategy: Strategy[...],
    options: dict[str, Any],
    settings: Settings,
    *,
    parallel: int = 1,
    on_stats: Callable[[DecoderStats, int], None] = lambda stats, done: None,
) -> tuple[list[Outcome], RunStats]:
    """Solves the tasks, at most `parallel` at a time.

    on_stats: called some 50 times a second with the decoder's state and the number of tasks done.
    """
    if strategy.needs_scorer:
        options = options | {"scorer": make_scorer(settings.scorer, decoder.tokenizer, chat=settings.chat)}
    done = 0
    peak = before = decoder.stats()
    slots = asyncio.Semaphore(parallel)

    async def solve(task: Task) -> Outcome:
        nonlocal done
        async with slots:
            budget = Budget(settings.budget_tokens, settings.budget_seconds, settings.budget_cost)
            root = await decoder.root(make_prompt(task.prompt, decoder, settings), settings.sampling, budget)
            try:
                result = await strategy(root, **options)
            finally:
                root.release()
        done += 1
        scores = None if task.verify is None else tuple(task.verify(c.text) for c in result.candidates)
        return Outcome(task, result, scores)

    async def watch() -> None:
        nonlocal peak
        while True:
            stats = decoder.stats()
            peak = max(peak, stats, key=lambda seen: (seen.resident_bytes, seen.logical_tokens))
            on_stats(stats, done)
            await asyncio.sleep(_WATCH_SECONDS)

    async def all_tasks() -> list[Outcome]:
        watcher = asyncio.create_task(watch())
        try:
            return await gather(solve(task) for task in tasks)
        finally:
            watcher.cancel()
            with suppress(asyncio.CancelledError):
                await watcher

    started = time.perf_counter()
    with usage_errors():
        outcomes = decoder.run(all_tasks())
    seconds = time.perf_counter() - started
    # Not the decoder's count, which leaves out tokens that a strategy chose itself (lm_beam_search).
    generated = sum(outcome.result.stats.generated_tokens for outcome in outcomes)
    after = decoder.stats()
    return outcomes, RunStats(seconds, generated, peak, after.peak_bytes, after.cost - before.cost)


def make_prompt(text: str, decoder: TreeDecoder, settings: Settings) -> str | list[dict[str, str]]:
    """The prompt as the user's turn where the model has a chat template, else as it is."""
    if settings.chat and decoder.tokenizer.chat_template:
        return [{"role": "user", "content": text}]
    return text


_QUESTION = "Is the answer so far correct? Reply with Yes or No."


def make_scorer(name: str, tokenizer: Any, *, chat: bool = True) -> Scorer:
    """The scorer of that name; self_evaluation asks in the words of the chat template where there is one."""
    if name == "mean_logprob":
        return mean_logprob()
    if name == "self_evaluation":
        return (
            self_evaluation(chat_question(tokenizer))
            if chat and tokenizer.chat_template
            else self_evaluation()
        )
    raise UsageError(f"unknown scorer {name!r}; expected self_evaluation or mean_logprob")


def chat_question(tokenizer: Any) -> str:
    """The text from the end of an assistant's turn to the beginning of its next, a question between."""
    mark = "@@answer@@"
    turns = [("user", "?"), ("assistant", mark), ("user", _QUESTION)]
    messages = [{"role": role, "content": content} for role, content in turns]
    text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return text.partition(mark)[2]
