"""The actors of a pool: where they start, what they must have in common, which of them are alive."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..core.stats import DecoderStats
from ..decoding.decoder import TreeDecoder
from ..errors import ClusterError
from ..version import package_version
from .actor import SearchActor
from .connection import nodes
from .identity import Identity
from .placing import Place, Wish, missing, places, possible
from .totals import closed
from .trials import Trials

_NAMED = 4  # places in a message


@dataclass
class Member:
    """An actor.

    opening: the call that makes its decoder. made_by: the factory that made it.
    answered: its last answer, by `time.monotonic`. stats: of its decoders, as last reported.
    """

    number: int
    place: Place
    handle: Any
    opening: Any
    made_by: Callable[[], TreeDecoder]
    answered: float = field(default_factory=time.monotonic)
    stats: list[DecoderStats] = field(default_factory=list)

    def __str__(self) -> str:
        return f"actor {self.number} on node {self.place.node.name}"


class Fleet:
    """Starts an actor at every place of the cluster. It does not wait until they have their decoders.

    Attributes:
        members: actors that have a decoder, by number. opening: those being started.
        wanted: number that the cluster should have. threads: most that one of them has.
        proven: whether the factory has made a decoder. trials: which nodes may get an actor now.
        lost: number that died. past: what those did. pinned: prompts that an actor keeps.

    Raises ClusterError: the cluster has no room for them; no actor is left then.
    """

    def __init__(
        self,
        make_decoder: Callable[[], TreeDecoder],
        wish: Wish,
        pinned: int,
        start_seconds: float,
        silent_seconds: float,
    ) -> None:
        self.make_decoder = make_decoder
        self.start_seconds, self.silent_seconds = start_seconds, silent_seconds
        self.members: dict[int, Member] = {}
        self.opening: dict[int, Member] = {}
        self.lost = 0
        self.past: list[DecoderStats] = []
        self._wish, self.pinned = wish, pinned
        self._numbers = itertools.count()
        self._identity: tuple[Identity, str] | None = None  # shared by all, and who reported it first
        self.trials = Trials()
        self.proven = False
        wanted = places(nodes(), wish)
        self.wanted, self.threads = len(wanted), max(place.cpus for place in wanted)
        if wish.actors is not None:  # all have the same number of cores, whatever happens to nodes
            self._wish = replace(wish, cpus=wanted[0].cpus)
        try:
            for place in wanted:
                self.start(place)
        except BaseException:
            self.close()
            raise

    def start(self, place: Place) -> Member:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        actor: Any = ray.remote(SearchActor)
        handle = actor.options(
            num_cpus=place.cpus,
            num_gpus=place.gpus,
            max_restarts=0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(place.node.id, soft=False),
        ).remote(place.cpus, self.pinned)
        number = next(self._numbers)
        made_by = self.make_decoder
        member = Member(number, place, handle, handle.open.remote(made_by), made_by)
        self.opening[number] = member
        return member

    def opened(self, member: Member, result: Callable[[], Identity]) -> None:
        """Registers an actor whose decoder was made, according to the call's result.

        Raises ClusterError: it was not made, or differs from the others; the actor is then gone.
        """
        self.opening.pop(member.number, None)
        try:
            identity = result()
        except Exception as cause:
            self._kill(member)
            raise ClusterError(f"{member} has no decoder: {reason(cause)}") from cause
        try:
            self.compare(member, identity)
        except ClusterError:
            self.trials.leave_out(member.place.node.id)
            self._kill(member)
            raise
        self.proven = True
        self.trials.opened(member.place.node.id)
        member.answered = time.monotonic()
        self.members[member.number] = member

    def reopen(self, member: Member) -> bool:
        """Has the actor make another decoder if the factory changed since it began to make its own."""
        if member.made_by is self.make_decoder:
            return False
        member.made_by, member.answered = self.make_decoder, time.monotonic()
        member.opening = member.handle.open.remote(member.made_by)
        return True

    def leave(self, member: Member) -> bool:
        """Removes an actor that is dead, or is to be ended; returns False if that was known."""
        known = self.members.pop(member.number, None) or self.opening.pop(member.number, None)
        if known is None:
            return False
        self.lost += 1
        self.past += map(closed, member.stats)
        self._kill(member)
        return True

    def vacant(self) -> list[Place]:
        """Returns the places where an actor is to be started now. Raises ClusterError without room."""
        there = [member.place for member in (*self.members.values(), *self.opening.values())]
        self.wanted = len(there)
        known = [node for node in nodes() if node.id not in self.trials.left_out]
        vacant = missing(possible(known, self._wish), there)
        if self._wish.actors is not None:
            vacant = vacant[: max(self._wish.actors - len(there), 0)]
        self.wanted += len(vacant)
        now = time.monotonic()
        return [place for place in vacant if self.trials.may_start(place.node.id, now)]

    def give_up_late(self) -> list[Member]:
        """Removes and returns the actors that have no decoder after `start_seconds`."""
        import ray

        def ended(member: Member) -> bool:  # and the service's thread has not come to it yet
            return bool(ray.wait([member.opening], timeout=0, fetch_local=False)[0])

        now = time.monotonic()
        late = [one for one in self.opening.values() if now - one.answered > self.start_seconds]
        late = [member for member in late if not ended(member)]
        for member in late:
            self.leave(member)
        return late

    def too_late(self, late: Sequence[Member]) -> ClusterError:
        who = f"{late[0]} has" if len(late) == 1 else f"{len(late)} actors have"
        return ClusterError(
            f"{who} no decoder after {self.start_seconds:g} s: {listed(late)} may be in use by others, or it "
            "takes longer; raise start_seconds, or ask for less"
        )

    def close(self) -> None:
        for member in (*self.members.values(), *self.opening.values()):
            self._kill(member)
        self.members, self.opening = {}, {}

    def compare(self, member: Member, identity: Identity) -> None:
        """Raises ClusterError for an actor that differs from the others."""
        if identity.tts_kernels != package_version():
            raise ClusterError(
                f"{member} has tts-kernels {identity.tts_kernels}, here it is {package_version()}: install "
                "the same version on all nodes"
            )
        if self._identity is None:
            self._identity = identity, str(member)
        if (unlike := identity.unlike(str(member), *self._identity)) is not None:
            raise ClusterError(unlike)

    def _kill(self, member: Member) -> None:
        import ray

        with contextlib.suppress(Exception):  # it may have gone with its node
            ray.kill(member.handle)


def listed(members: Sequence[Member]) -> str:
    """Returns the actors' places, of many only the first."""
    named = ", ".join(str(member.place) for member in members[:_NAMED])
    return named if len(members) <= _NAMED else f"{named} and {len(members) - _NAMED} more"


def reason(error: BaseException) -> str:
    """Returns an error of Ray's in one line; for a call that raised, the error that it raised."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, BaseException):
        return f"{type(cause).__name__}: {' '.join(str(cause).split())}"
    return " ".join(str(error).split())[:300] or type(error).__name__


def raised(error: Any) -> Exception:
    """Returns what a call on an actor raised."""
    return error.cause if isinstance(error.cause, Exception) else ClusterError(reason(error))
