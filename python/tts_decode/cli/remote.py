"""Runs a sweep's searches on the actors of a cluster: what each actor loads and receives.

Judging, saving and progress stay in this process. An actor keeps its model for all settings and makes a new
decoder for each, as a single process does.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import chain, repeat
from pathlib import Path
from typing import Any

from ..cluster import Host, SearchPool
from ..core.running import Runner
from ..core.stats import DecoderStats
from ..decoding.decoder import TreeDecoder
from ..model.sparse import SparseConfig
from ..search import Strategy
from ..tasks import Task
from .display import Display
from .grid import Setting
from .groups import ClusterOptions, ModelOptions
from .outcomes import Outcome
from .problems import Found, Job, Settings, search_task, solve_jobs
from .progress import Progress
from .scorers import ScorerOf, is_reward_model, open_scorer
from .session import Session
from .sweep_run import most_in_flight, prompts_of


@dataclass(frozen=True)
class Loads:
    """Everything that an actor loads once. scorer: the name of a reward model, None for other scorers."""

    model: ModelOptions
    scorer: str | None


@cache
def opened(loads: Loads) -> tuple[Session, ScorerOf]:
    """Returns the model and the scorer in an actor's process, for its lifetime."""
    context = loads.model.open(shared=loads.scorer is not None)
    session = context.__enter__()
    return session, open_scorer(loads.scorer, device=loads.model.device, kv_bytes=session.kv_bytes)


def make_decoder(loads: Loads, sparse: SparseConfig | None) -> TreeDecoder:
    session, scores = opened(loads)
    scores.close()
    return session.decoder(sparse)


def described(loads: Loads, decoder: TreeDecoder) -> dict[str, Any]:
    return opened(loads)[0].describe()


@dataclass(frozen=True)
class RemoteSearch:
    """One search, as sent to an actor. scores: None for the reward model that the actor has loaded."""

    task: Task
    settings: Settings
    strategy: Strategy[...]
    options: dict[str, Any]
    loads: Loads
    scores: ScorerOf | None
    journal: Path | None

    @property
    def beginning(self) -> str:
        return self.task.prompt

    async def __call__(self, host: Host) -> Found:
        scores = opened(self.loads)[1] if self.scores is None else self.scores
        return await search_task(
            host.decoder,
            self.task,
            self.settings,
            self.strategy,
            self.options,
            scores,
            lambda: host.journal,
        )


class RemoteEngine(Runner):
    """Runs settings one at a time on a pool. parallel: most searches in flight on each actor."""

    def __init__(self, pool: SearchPool, loads: Loads, scorer: str | None, parallel: int) -> None:
        self._pool, self._loads, self._parallel = pool, loads, parallel
        self._scores = None if is_reward_model(scorer) else ScorerOf(scorer)
        self._needs_verifier = scorer == "verifier"
        self._about: dict[str, Any] = pool.ask(partial(described, loads))[0] | {"threads": pool.threads}

    def describe(self) -> dict[str, Any]:
        return self._about

    def outcomes(self, setting: Setting, jobs: Sequence[Job], progress: Progress) -> list[Outcome]:
        self._pool.renew(partial(make_decoder, self._loads, setting.sparse))
        most = partial(most_in_flight, width=setting.width, prompts=prompts_of(jobs))
        self._pool.in_flight = min(self._parallel, *self._pool.ask(most))

        async def search(job: Job) -> Found:
            ended = await self._pool.search(self._sent(setting, job))
            return Found(None, ended.error, 0.0) if ended.error is not None else ended.result()

        def stats() -> DecoderStats:
            now = self._pool.stats()
            progress.joined(now.actors, now.wanted)
            return now.decoders

        return self.run(solve_jobs(jobs, search, stats, len(jobs), progress.seen, progress.ended))

    def _sent(self, setting: Setting, job: Job) -> RemoteSearch:
        task = job.task if self._needs_verifier else replace(job.task, verify=None)
        journal = None if job.saved is None else job.saved.journal_file(job.index)
        return RemoteSearch(
            task, job.settings, setting.strategy, dict(setting.options), self._loads, self._scores, journal
        )


@contextmanager
def remote_engine(
    model: ModelOptions, scorer: str | None, parallel: int, cluster: ClusterOptions, display: Display
) -> Iterator[RemoteEngine]:
    """Starts the actors of a cluster and loads the model in each; they end with the block.

    All output meanwhile goes to stderr, where Ray reports each death, to keep stdout for the result.
    """
    assert cluster.ray is not None
    loads = Loads(model, scorer if is_reward_model(scorer) else None)
    where = "on this machine" if cluster.ray == "local" else f"at {cluster.ray}"
    display.stage(f"opening {model.model} on the actors of a Ray cluster {where}")
    seconds = cluster.ray_start_seconds
    limit: dict[str, Any] = {} if seconds is None else {"start_seconds": float(seconds)}
    shows = chain([display.stage], repeat(display.update))  # a log needs to be told only once
    with (
        redirect_stdout(sys.stderr),
        SearchPool(
            partial(make_decoder, loads, None),
            address=cluster.ray,
            actors=cluster.ray_actors,
            cpus=cluster.ray_cpus,
            gpus=model.device.partition(":")[0] == "cuda",
            in_flight=parallel,
            pinned_prompts=0,
            on_wait=lambda text: next(shows)(text),
            **limit,
        ) as pool,
    ):
        status = pool.stats()
        if status.actors < status.wanted:
            display.stage(f"{status.actors} of {status.wanted} actors have opened it, and the sweep begins")
        yield RemoteEngine(pool, loads, scorer, parallel)
