"""Runs a strategy on problems, several in one batch, and monitors the decoder."""

from __future__ import annotations

import asyncio
import time
import zlib
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, NamedTuple

from ..core.budget import Budget
from ..core.checks import checked_positive
from ..core.params import SamplingParams
from ..core.running import gather
from ..core.stats import DecoderStats
from ..decoding.decoder import TreeDecoder
from ..errors import ClusterError
from ..model.sparse import SparseConfig
from ..search import Journal, SearchResult, SearchRun, Strategy
from ..tasks import Task
from .errors import usage_errors
from .outcomes import Outcome, RunStats, describe
from .saving import Saved
from .scorers import ScorerOf

_WATCH_SECONDS = 0.02  # between readings of the decoder; a forward takes about as long or longer
_BUDGET_OPTIONS = {f"max_{unit}": f"--budget-{unit}" for unit in ("tokens", "seconds", "cost")}


@dataclass(frozen=True)
class Settings:
    """How each search samples, and its limits.

    scorer_timeout, tool_timeout: seconds for a call of the scorer, and of a tool or a retriever.
    """

    sampling: SamplingParams
    budget_tokens: int | None = None
    budget_seconds: float | None = None
    budget_cost: float | None = None
    scorer_timeout: float | None = None
    tool_timeout: float | None = None
    chat: bool = True

    def __post_init__(self) -> None:
        """Raises UsageError."""
        with usage_errors(_BUDGET_OPTIONS):
            self.budget()
            for name in ("scorer_timeout", "tool_timeout"):
                if (seconds := getattr(self, name)) is not None:
                    checked_positive(name, seconds, "a number of seconds")

    def budget(self) -> Budget:
        """Returns a new budget, for one search."""
        return Budget(self.budget_tokens, self.budget_seconds, self.budget_cost)


def run_settings(
    session: dict[str, Any],
    strategy: str,
    options: dict[str, Any],
    scorer: str | None,
    sparse: SparseConfig | None,
    tasks: Sequence[Task],
    settings: Settings,
) -> dict[str, Any]:
    """Returns everything that a run's results depend on, JSON-ready: a saved run resumes only if it is equal.

    session: from `Session.describe`.
    """
    told = "".join(f"{task.name}\n{task.prompt}\n{task.answer}\n" for task in tasks)
    return {
        **session,
        "strategy": strategy,
        "options": {name: getattr(value, "named", value) for name, value in options.items()},
        "scorer": scorer,
        "sparse": None if sparse is None else asdict(sparse),
        "problems": len(tasks),
        "problems_crc32": zlib.crc32(told.encode(errors="surrogatepass")),
        **asdict(replace(settings, sampling=SamplingParams())),
        "sampling": settings.sampling.to_dict(),
    }


@dataclass(frozen=True)
class Job:
    """One search of a batch. index: its number in `saved`, which keeps outcomes and supplies earlier ones."""

    index: int
    task: Task
    settings: Settings
    saved: Saved | None = None


class Found(NamedTuple):
    """The outcome of a search before it is judged: a result or an error, and its cost in eFLOPs."""

    result: SearchResult | None
    error: Exception | None
    cost: float


OnStats = Callable[[DecoderStats, int], None]
OnEnd = Callable[[Outcome, bool], None]


def run_problems(
    decoder: TreeDecoder,
    tasks: Sequence[Task],
    strategy: Strategy[...],
    options: dict[str, Any],
    settings: Settings,
    scorer: ScorerOf,
    *,
    parallel: int = 1,
    saved: Saved | None = None,
    on_stats: OnStats = lambda stats, done: None,
) -> tuple[list[Outcome], RunStats]:
    """Solves tasks as `run_jobs` does, all with the same settings."""
    jobs = [Job(index, task, settings, saved) for index, task in enumerate(tasks)]
    return run_jobs(decoder, jobs, strategy, options, scorer, parallel=parallel, on_stats=on_stats)


def run_jobs(
    decoder: TreeDecoder,
    jobs: Sequence[Job],
    strategy: Strategy[...],
    options: dict[str, Any],
    scorer: ScorerOf,
    *,
    parallel: int = 1,
    on_stats: OnStats = lambda stats, done: None,
    on_end: OnEnd = lambda outcome, ran: None,
) -> tuple[list[Outcome], RunStats]:
    """Runs at most `parallel` searches at a time. A failed one has its error as outcome; the others continue.

    scorer: the strategy's scorer for a task. on_stats, on_end: as in `solve_jobs`.
    """
    before = decoder.stats()
    read_before = scorer.cost
    ran: list[Outcome] = []

    async def search(job: Job) -> Found:
        journal = None if job.saved is None else partial(job.saved.journal, job.index)
        return await search_task(decoder, job.task, job.settings, strategy, options, scorer, journal)

    def ended(outcome: Outcome, searched: bool) -> None:
        if searched:
            ran.append(outcome)
        on_end(outcome, searched)

    peak = before

    def seen(stats: DecoderStats, done: int) -> None:
        nonlocal peak
        peak = max(peak, stats, key=lambda seen: (seen.resident_bytes, seen.logical_tokens))
        on_stats(stats, done)

    started = time.perf_counter()
    outcomes = decoder.run(solve_jobs(jobs, search, decoder.stats, parallel, seen, ended))
    seconds = time.perf_counter() - started
    # Not the decoder's count, which omits tokens that a strategy chose itself (lm_beam_search).
    generated = sum(outcome.result.stats.generated_tokens for outcome in ran if outcome.result)
    after = decoder.stats()
    cost = after.cost - before.cost + (scorer.cost - read_before)
    return outcomes, RunStats(len(ran), seconds, generated, peak, after.peak_bytes, cost)


async def search_task(
    decoder: TreeDecoder,
    task: Task,
    settings: Settings,
    strategy: Strategy[...],
    options: dict[str, Any],
    scorer: ScorerOf,
    journal: Callable[[], Journal | None] | None,
) -> Found:
    """Runs one search, from a new root. journal: opens its journal."""
    budget = settings.budget()
    try:
        root = await decoder.root(make_prompt(task.prompt, decoder, settings), settings.sampling, budget)
        try:
            opened = None if journal is None else journal()
            run = SearchRun(
                root,
                journal=opened,
                scorer_timeout=settings.scorer_timeout,
                tool_timeout=settings.tool_timeout,
            )
            result = await strategy(run, **options, **scorer.argument(strategy, task, decoder))
        finally:
            root.release()
    except Exception as error:  # of any kind: it concerns only this problem
        return Found(None, error, budget.cost_used)
    return Found(result, None, budget.cost_used)


async def solve_jobs(
    jobs: Sequence[Job],
    search: Callable[[Job], Awaitable[Found]],
    stats: Callable[[], DecoderStats],
    parallel: int,
    on_stats: OnStats,
    on_end: OnEnd,
) -> list[Outcome]:
    """Runs, judges and saves each job's search, at most `parallel` at a time, unless its result was saved.

    stats: returns the state of the decoders.
    on_stats: called about 50 times a second with that and the number of finished searches.
    on_end: called with each outcome, and whether its search ran now, rather than being saved earlier.
    """
    done = 0
    slots = asyncio.Semaphore(parallel)

    async def solve(job: Job) -> Outcome:
        nonlocal done
        saved = job.saved
        async with slots:
            known = None if saved is None else saved.results.get(job.index)
            if known is not None:
                outcome = await _judged(job.task, Found(known[0], None, known[1]))
            else:
                outcome = await _judged(job.task, await found(job))
                if saved is not None:
                    saved.add(job.index, describe(outcome), outcome.result)
        done += 1
        on_end(outcome, known is None)
        return outcome

    async def found(job: Job) -> Found:
        try:
            return await search(job)
        except ClusterError:  # no actor is left to search
            raise
        except Exception as error:  # its journal is unusable
            return Found(None, error, 0.0)

    async def watch() -> None:
        while True:
            on_stats(stats(), done)
            await asyncio.sleep(_WATCH_SECONDS)

    watcher = asyncio.create_task(watch())
    try:
        return await gather(map(solve, jobs))
    finally:
        watcher.cancel()
        with suppress(asyncio.CancelledError):
            await watcher


async def _judged(task: Task, found: Found) -> Outcome:
    """Judges an outcome. If the verifier raises, the problem fails, and its search is not saved as ended."""
    result, error, cost = found
    if result is None:
        return Outcome(task, None, error, cost)
    try:
        return Outcome(task, result, None, cost, await asyncio.to_thread(_verified, task, result))
    except Exception as error:
        return Outcome(task, None, error, cost)


def _verified(task: Task, result: SearchResult) -> tuple[float, ...] | None:
    """Returns the verifier's score of every candidate. Raises the verifier's errors, also for the answer."""
    if task.verify is None:
        return None
    scores = tuple(task.verify(candidate.text) for candidate in result.candidates)
    if all(candidate.text != result.answer for candidate in result.candidates):
        task.verify(result.answer)
    return scores


def make_prompt(text: str, decoder: TreeDecoder, settings: Settings) -> str | list[dict[str, str]]:
    """Returns the prompt as the user's turn if the model has a chat template, otherwise unchanged."""
    if settings.chat and decoder.tokenizer.chat_template:
        return [{"role": "user", "content": text}]
    return text
