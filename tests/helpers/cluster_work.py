"""Decoders and searches that tests send to actors, which import them from this module."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from primitives import make
from tiny_models import tiny_model
from tts_decode import Branch, SamplingParams, TreeDecoder
from tts_decode.cluster import Host, PooledSearch
from tts_decode.rewards import mean_probability
from tts_decode.search import Journal, SearchResult, rebase
from tts_decode.serve.config import ServerConfig


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

    def __init__(self, journal: Journal | None) -> None:
        self.decoder, self.journal = _decoder(), journal

    def keep(self, root: object) -> None: ...


def here(work: PooledSearch, journal: Journal | None = None) -> SearchResult:
    """What the search comes to in this process."""
    return _decoder().run(work(_Here(journal)))


def process(decoder: TreeDecoder) -> int:
    return os.getpid()


def no_decoder() -> TreeDecoder:
    raise FileNotFoundError("no such model: /models/none")


def other_decoder() -> TreeDecoder:
    return tiny_decoder(1)


@dataclass(frozen=True)
class DecoderOfTurn:
    """Makes a decoder for the first one that asks. All after it wait for the file `go`, then call `later`.

    folder: where that file is, and a line in `calls` for each of them.
    """

    folder: Path
    later: Callable[[], TreeDecoder]

    def __call__(self) -> TreeDecoder:
        try:
            (self.folder / "first").touch(exist_ok=False)
        except FileExistsError:
            with open(self.folder / "calls", "a") as file:
                file.write(f"{os.getpid()}\n")
            while not (self.folder / "go").exists():
                time.sleep(0.05)
            return self.later()
        return tiny_decoder()


@dataclass(frozen=True)
class ServedOfTurn:
    """Opens a replica of one model for the first that asks, of another for all after it."""

    folder: Path

    def __call__(self) -> tuple[TreeDecoder, ServerConfig]:
        (self.folder / "go").touch()
        return DecoderOfTurn(self.folder, other_decoder)(), ServerConfig("little")


@dataclass(frozen=True)
class Killer:
    """Ends the process of its actor."""

    beginning: str = "x"
    journal: Path | None = None

    async def __call__(self, host: Host) -> None:
        os._exit(3)


@dataclass(frozen=True)
class Endless:
    """Says in a file that it began, and in another one that it was cancelled."""

    folder: Path
    beginning: str = "endless"
    journal: Path | None = None

    async def __call__(self, host: Host) -> None:
        (self.folder / "began").touch()
        try:
            await asyncio.sleep(1e6)
        finally:
            (self.folder / "ended").touch()


@dataclass(frozen=True)
class DyingScorer:
    """Notes each call in a file; its process ends in the call of that number, the first time."""

    calls: Path
    number: int

    async def __call__(self, branches: Sequence[Branch]) -> list[float]:
        with open(self.calls, "a") as file:
            file.write(f"{os.getpid()}\n")
        if len(self.calls.read_text().splitlines()) == self.number:
            await asyncio.sleep(2)  # in which the journal's lines are told
            os._exit(3)
        return [float(len(branch.text) % 7) for branch in branches]
