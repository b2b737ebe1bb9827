"""Runs the settings of a sweep one at a time, each as one batch over problems and seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ..core.prompts import PromptReader
from ..decoding.decoder import TreeDecoder
from ..errors import ClusterError, TTSError
from ..grading import group
from ..select import extract_answer
from ..sweeps import Sample, Search
from ..tasks import Task
from .errors import CommandError, UsageError
from .grid import Setting
from .outcomes import CORRECT, Outcome, told
from .problems import Job, Settings, make_prompt, run_jobs, run_settings
from .progress import Progress
from .saving import Saved
from .scorers import ScorerOf
from .session import Session


@dataclass(frozen=True)
class Batch:
    """The results of one setting.

    searches: in the order of seeds, then problems. failed: cells that could not run, and why. errors: of
    failed searches.
    """

    setting: Setting
    searches: list[Search]
    failed: dict[str, Exception]
    errors: list[Exception]


class Engine(Protocol):
    """Runs the searches of a sweep: in this process, or on actors of a cluster."""

    def describe(self) -> dict[str, Any]:
        """Describes what ran, as `Session.describe` does."""

    def outcomes(self, setting: Setting, jobs: Sequence[Job], progress: Progress) -> list[Outcome]:
        """Returns the outcomes of a setting's jobs, in order; those with saved results do not run again."""


@dataclass(frozen=True)
class LocalEngine:
    """Runs searches in this process. parallel: most searches in flight."""

    session: Session
    scores: ScorerOf
    parallel: int

    def describe(self) -> dict[str, Any]:
        return self.session.describe()

    def outcomes(self, setting: Setting, jobs: Sequence[Job], progress: Progress) -> list[Outcome]:
        decoder = self.session.decoder(setting.sparse)
        try:
            outcomes, _ = run_jobs(
                decoder,
                jobs,
                setting.strategy,
                dict(setting.options),
                self.scores,
                parallel=min(self.parallel, most_in_flight(decoder, setting.width, prompts_of(jobs))),
                on_stats=progress.seen,
                on_end=progress.ended,
            )
        finally:
            self.scores.close()
        return outcomes


@dataclass(frozen=True)
class SweepRun:
    """Everything that all settings share. by_seed: how searches from each seed sample."""

    folder: Path
    engine: Engine
    problems: Sequence[Task]
    by_seed: Mapping[int, Settings]
    scorer: str | None
    progress: Progress

    def run(self, setting: Setting) -> Batch:
        """Searches all problems from all seeds, or reads their saved results.

        An unusable file fails only its cell; a decoder that cannot be made fails only its setting.
        """
        failed: dict[str, Exception] = {}
        with ExitStack() as files:
            opened: dict[int, Saved] = {}
            for seed in self.by_seed:
                try:
                    opened[seed] = files.enter_context(self._saved(setting, seed))
                except CommandError as error:
                    failed[setting.cell(seed)] = error
            jobs = [
                Job(index, task, self.by_seed[seed], saved)
                for seed, saved in opened.items()
                for index, task in enumerate(self.problems)
            ]
            self.progress.begin(setting.label, setting.width)
            self.progress.skip(len(failed) * len(self.problems))
            try:
                outcomes = self.engine.outcomes(setting, jobs, self.progress) if jobs else []
            except (UsageError, CommandError, ClusterError):
                raise  # it concerns options of all settings, the folder, or all actors
            except TTSError as error:
                failed |= {setting.cell(seed): error for seed in opened}
                self.progress.skip(len(jobs))
                outcomes, jobs = [], []
            finally:
                self.progress.end()
        seeds = [job.settings.sampling.seed for job in jobs]
        searches = [
            measured(setting, seed, job.index, outcome)
            for seed, job, outcome in zip(seeds, jobs, outcomes, strict=True)
        ]
        errors = [outcome.error for outcome in outcomes if outcome.error is not None]
        return Batch(setting, searches, failed, errors)

    def _saved(self, setting: Setting, seed: int) -> Saved:
        about = run_settings(
            self.engine.describe(),
            setting.strategy.name,
            dict(setting.options),
            self.scorer,
            setting.sparse,
            self.problems,
            self.by_seed[seed],
        )
        return Saved(self.folder, setting.cell(seed), about | {"width": setting.width}, len(self.problems))


Prompts = dict[str, Settings]
"""Problems' texts with the settings of which one leaves the longest answer."""


def prompts_of(jobs: Sequence[Job]) -> Prompts:
    ordered = sorted(jobs, key=lambda job: job.settings.sampling.max_tokens)
    return {job.task.prompt: job.settings for job in ordered}


def most_in_flight(decoder: TreeDecoder, width: int, prompts: Prompts) -> int:
    """Returns how many searches of a width fit into the pool and the offloaded pages; at least 1.

    Each is assumed to have the longest prompt, and `width` branches of the greatest length.
    """
    reader = PromptReader(decoder.tokenizer, decoder.vocab_size)
    try:
        made = [make_prompt(text, decoder, settings) for text, settings in prompts.items()]
        longest = max(len(reader.prompt(prompt)[1]) for prompt in made)
    except (ValueError, TypeError):
        return max(1, len(prompts))  # the searches will report what is wrong with a prompt
    page = decoder.page_size
    answer = max(settings.sampling.max_tokens for settings in prompts.values())
    branch = answer + page  # plus its copy of one page of the prompt
    tokens = -(-longest // page) * page + width * -(-branch // page) * page
    return max(1, (decoder.max_kv_tokens + decoder.max_offloaded_tokens) // tokens)


def measured(setting: Setting, seed: int, problem: int, outcome: Outcome) -> Search:
    """Returns an outcome without its tree and texts."""
    about = (
        setting.cell(seed),
        setting.strategy.name,
        setting.width,
        seed,
        setting.sparse is not None,
        problem,
        outcome.task.name,
    )
    result = outcome.result
    if result is None:
        error = None if outcome.error is None else told(outcome.error)
        return Search(*about, eflops=outcome.cost, error=error)
    voters = any(candidate.complete for candidate in result.candidates)
    answers = group([extract_answer(c.text) if c.complete or not voters else None for c in result.candidates])
    return Search(
        *about,
        solved=bool(outcome.solved),
        found=bool(outcome.found),
        tokens=result.stats.generated_tokens,
        seconds=result.stats.seconds,
        mean_kv_bytes=result.stats.mean_bytes,
        peak_kv_bytes=float(result.stats.peak_bytes),
        eflops=outcome.cost,
        stopped=result.stopped,
        samples=tuple(
            Sample(score >= CORRECT, answer, candidate.score)
            for score, answer, candidate in zip(outcome.scores or (), answers, result.candidates, strict=True)
        ),
    )
