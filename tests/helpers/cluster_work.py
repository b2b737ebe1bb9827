"""Decoders and searches that tests send to actors, which import them from here."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from primitives import make
from tiny_models import tiny_model
from tts_decode import SamplingParams, TreeDecoder
from tts_decode.cluster import Host, PooledSearch
from tts_decode.rewards import mean_probability
from tts_decode.search import SearchResult, rebase


def tiny_decoder(seed: int = 0) -> TreeDecoder:
    return make(tiny_model(seed=seed))


def tiny_search(
    seed: int,
    *,
    prompt: str = "The quick brown fox",
    tokens: int = 24,
    n: int = 3,
    journal: Path | None = None,
) -> PooledSearch:
    sampling = SamplingParams(seed=seed, max_tokens=tokens, max_step_tokens=6)
    return PooledSearch(prompt, rebase, {"n": n}, sampling, scorer=mean_probability(), journal=journal)


@cache
def _decoder() -> TreeDecoder:
    return tiny_decoder()


class _Here:
    """The host of a search in this process."""

    journal = None

    def __init__(self) -> None:
        self.decoder = _decoder()

    def keep(self, root: object) -> None: ...


def here(work: PooledSearch) -> SearchResult:
    """What the search comes to in this process."""
    return _decoder().run(work(_Here()))


def process(decoder: TreeDecoder) -> int:
    return os.getpid()


@dataclass(frozen=True)
class Killer:
    """Ends the process of its actor."""

    beginning: str = "x"
    journal: Path | None = None

    async def __call__(self, host: Host) -> None:
        os._exit(3)


@dataclass(frozen=True)
class Recorded:
    """A search that ends its actor's process once, when its journal holds so many entries."""

    search: PooledSearch
    marker: Path
    entries: int

    @property
    def beginning(self) -> str:
        return self.search.beginning

    @property
    def journal(self) -> Path | None:
        return self.search.journal

    async def __call__(self, host: Host) -> SearchResult:
        return await self.search(host)
