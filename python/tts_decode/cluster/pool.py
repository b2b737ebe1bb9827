"""`SearchPool`: searches on the actors of a Ray cluster, as if they were one decoder."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, as_completed
from types import TracebackType
from typing import Any, TypeVar

from tts_kernels.checks import integer, number

from ..decoding.decoder import TreeDecoder
from .connection import LOCAL, connect
from .fleet import Fleet
from .placing import Wish
from .service import Service
from .totals import PoolStats
from .work import Ended, Work

T = TypeVar("T")

MakeDecoder = Callable[[], TreeDecoder]


class SearchPool:
    """Runs searches on actors that each hold a decoder.

    A search goes to an actor that has room, preferably to one that holds the beginning of its prompt. An
    actor that dies, alone or with its node, is replaced as soon as the cluster has room, and its searches run
    again: from their journals if they have them, otherwise from their beginning. Both find what an
    undisturbed run would have found, because all randomness comes from seeds. Each search ends once.

    The pool is ready when the first actor has its decoder; the others join as they get theirs. A node whose
    actors get none, or another model's, is reported in the log and left out.

    Attributes:
        threads: of an actor's decoder; the most, where nodes differ.

    Args:
        decoder_factory: makes an actor's decoder on the actor; it is pickled, and what it loads must exist
            there too.
        address: of a cluster: HOST:PORT, "auto" for the cluster of RAY_ADDRESS or of this machine, "local"
            for one that starts and ends with the pool. A process that is already connected stays connected.
        actors: total number; default: one per GPU, or one per node if there are none.
        cpus: cores of each, which are its decoder's threads; default: an equal share of the node's.
        gpus: whether each has a GPU; default: if the cluster has any.
        in_flight: maximum number of searches on an actor at a time; the others wait in the pool.
        attempts: actors that may die during a search before it is given up.
        pinned_prompts: how many of an actor's last searches keep their prompts resident while there is room.
        start_seconds: time limit for an actor to have its decoder.
        silent_seconds: time after which an actor that does not answer counts as dead. It does not answer
            while one forward runs.
        runtime_env: of Ray, for a cluster to which this process is not connected yet.
        on_wait: called every two seconds with what the pool waits for, until the first actor is ready.

    Raises:
        MissingExtraError: Ray is not installed.
        ClusterError: the address does not answer, the cluster lacks room, no actor has a decoder in time, or,
            before any has one, one cannot make it or has another version of tts-kernels; the message names
            address, actor and node.
    """

    def __init__(
        self,
        decoder_factory: MakeDecoder,
        *,
        address: str = LOCAL,
        actors: int | None = None,
        cpus: int | None = None,
        gpus: bool | None = None,
        in_flight: int = 4,
        attempts: int = 4,
        pinned_prompts: int = 16,
        start_seconds: float = 600.0,
        silent_seconds: float = 600.0,
        runtime_env: dict[str, Any] | None = None,
        on_wait: Callable[[str], None] | None = None,
    ) -> None:
        if not callable(decoder_factory):
            raise TypeError(
                f"decoder_factory: got {type(decoder_factory).__name__}, expected a function that makes a "
                "decoder"
            )
        wish = Wish(
            None if actors is None else integer("actors", actors, 1),
            None if cpus is None else integer("cpus", cpus, 1),
            gpus,
        )
        in_flight, attempts = integer("in_flight", in_flight, 1), integer("attempts", attempts, 1)
        pinned = integer("pinned_prompts", pinned_prompts, 0)
        limits = (
            number("start_seconds", start_seconds, above=0),
            number("silent_seconds", silent_seconds, above=0),
        )
        self._connected = connect(address, runtime_env)
        try:
            fleet = Fleet(decoder_factory, wish, pinned, *limits)
            self._service = Service(fleet, in_flight, attempts)
        except BaseException:
            self._disconnect()
            raise
        self.threads = fleet.threads
        try:
            self._service.await_first(on_wait)
        except BaseException:
            self.close()
            raise

    # -- searches

    def submit(self, work: Work[T]) -> Future[Ended[T]]:
        """Submits a search. The future's result holds its outcome, including its own errors.

        Cancelling the future ends the search. Raises ClusterError, here or from the result: the pool is
        closed, or has lost its actors for good.
        """
        return self._service.submit(work)

    async def search(self, work: Work[T]) -> Ended[T]:
        """Like `submit`, for an event loop."""
        return await asyncio.wrap_future(self.submit(work))

    def results(self, works: Iterable[Work[T]]) -> Iterator[Ended[T]]:
        """Yields the outcomes of searches, in the order in which they end.

        Searches that have not ended when the iterator is closed are cancelled.
        """
        futures = [self.submit(work) for work in works]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            for future in futures:
                future.cancel()

    # -- actors

    @property
    def in_flight(self) -> int:
        return self._service.in_flight

    @in_flight.setter
    def in_flight(self, count: int) -> None:
        self._service.in_flight = integer("in_flight", count, 1)

    def renew(self, decoder_factory: MakeDecoder) -> None:
        """Gives each actor another decoder of the same model, with zero counters and nothing resident.

        Raises ClusterError: searches are running, or for the reasons of `SearchPool`.
        """
        self._service.renew(decoder_factory)

    def ask(self, question: Callable[[TreeDecoder], T]) -> list[T]:
        """Calls a function on each actor's decoder, there; returns the results. Actors that die return none.

        Raises ClusterError: none is left; and what the function raises.
        """
        return self._service.ask(question)

    def stats(self) -> PoolStats:
        return self._service.stats()

    def close(self) -> None:
        """Ends all actors; running searches are cancelled, and their journals are complete."""
        self._service.close()
        self._disconnect()

    def __enter__(self) -> SearchPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _disconnect(self) -> None:
        if self._connected:
            import ray

            self._connected = False
            ray.shutdown()
