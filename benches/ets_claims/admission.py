"""Problems per minute from a fixed budget of KV pages: searches are admitted as pages become free.

All running searches take their next tokens in one batch. One that lacks pages for them waits and keeps its
pages. A new one is admitted while the running searches leave room for another mean peak; each of them counts
as the mean peak of its kind, or what it holds if that is more. If all wait, the last one admitted releases
its pages and restarts later.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from benches.ets_claims.paging import CHUNK, Moment


class Load(NamedTuple):
    """What a search does in its next `CHUNK` tokens: as in `Moment`."""

    rows: int
    pages: int
    pairs: int


class Batch(NamedTuple):
    """What all searches that take a step do together. pages: of these searches alone."""

    rows: int
    pages: int
    pairs: int


class Served(NamedTuple):
    """seconds: until the last search ended. restarts: of searches that gave their pages back. running:
    searches in a batch, averaged over time."""

    searches: int
    seconds: float
    restarts: int
    running: float

    @property
    def per_minute(self) -> float:
        return 60 * self.searches / self.seconds


def loads(moments: Sequence[Moment]) -> list[Load]:
    """A search in equal chunks of its time, each as it was at the chunk's end."""
    found, time, due = [], 0, CHUNK
    for moment in moments:
        time += moment.ticks
        while time >= due:
            found.append(Load(moment.rows, moment.pages, moment.pairs))
            due += CHUNK
    return found or [Load(moments[-1].rows, moments[-1].pages, moments[-1].pairs)]


@dataclass
class _Running:
    number: int
    done: int = 0  # chunks
    pages: int = 0


def serve(searches: Sequence[Sequence[Load]], budget: int, step_seconds: Callable[[Batch], float]) -> Served:
    """Runs the searches in their order.

    budget: pages. step_seconds: of one token for each row of a batch. Raises ValueError where a search alone
    takes more pages than there are.
    """
    peaks = [max(load.pages for load in search) for search in searches]
    if max(peaks) > budget:
        raise ValueError(
            f"budget: got {budget} pages, expected at least {max(peaks)}, the most that a search takes"
        )
    typical = sum(peaks) / len(peaks)
    waiting = deque(range(len(searches)))
    running: list[_Running] = []
    seconds = batches = restarts = 0.0
    while waiting or running:
        while waiting and sum(max(r.pages, typical) for r in running) + typical <= budget:
            running.append(_Running(waiting.popleft()))
        if waiting and not running:
            running.append(_Running(waiting.popleft()))
        moving = _advance(running, searches, budget)
        if not moving:
            last = running.pop()
            waiting.appendleft(last.number)
            restarts += 1
            continue
        loads_now = [searches[r.number][r.done - 1] for r in moving]
        batch = Batch(*(sum(values) for values in zip(*loads_now, strict=True)))
        took = CHUNK * step_seconds(batch)
        seconds += took
        batches += took * len(moving)
        running = [r for r in running if r.done < len(searches[r.number])]
    return Served(len(searches), seconds, int(restarts), batches / seconds)


def _advance(running: Sequence[_Running], searches: Sequence[Sequence[Load]], budget: int) -> list[_Running]:
    """Takes the next chunk of those for whose pages there is room, the longest admitted first."""
    held = sum(r.pages for r in running)
    moving = []
    for r in running:
        after = searches[r.number][r.done].pages
        if held - r.pages + after <= budget:
            held += after - r.pages
            r.pages = after
            r.done += 1
            moving.append(r)
    return moving
