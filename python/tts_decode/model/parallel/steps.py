"""Steps of all ranks: the leader announces what it runs, the others follow."""

from __future__ import annotations

import atexit
import threading
import zlib
from typing import Protocol
from weakref import ref

from ...errors import MeshError
from ..hf import Output
from ..host_steps import StepInputs
from .engine import SplitEngine
from .messages import Kind, Message, of_kind, of_step, rooms_for, step_of
from .ranks import Ranks

CHECK_EVERY = 32  # steps between comparisons of the ranks
_MASK = 2**63 - 1


class Steps(Protocol):
    """Runs a step on this rank alone."""

    def run(self, step: StepInputs, *, hidden: bool) -> Output: ...


class _Proof:
    """What a rank has received and computed, as numbers that must be equal on all."""

    def __init__(self) -> None:
        self.steps, self.received = 0, 0

    def note(self, message: Message) -> None:
        self.steps += 1
        self.received = zlib.crc32(message.numbers.numpy().tobytes(), self.received)

    @property
    def due(self) -> bool:
        return self.steps % CHECK_EVERY == 0

    def compare(self, ranks: Ranks, output: Output) -> None:
        """Compares the ranks.

        Last hidden states are sums over all ranks, after norms that each has: the same bits everywhere.

        Raises MeshError, on all ranks, that names who differs from the leader in what.
        """
        assert output.hidden is not None  # it was requested
        states = zlib.crc32(output.hidden.cpu().numpy().tobytes())
        found = ranks.gather_numbers([self.steps, self.received, states], "compared a step")
        what = "number of steps", "tokens, slots and tables received", "hidden states"
        wrong = [
            f"rank {rank} of {ranks.size} has other {name} than rank 0 at step {self.steps}"
            for rank, numbers in enumerate(found)
            for name, number, leader in zip(what, numbers, found[0], strict=True)
            if number != leader
        ]
        if wrong:
            raise MeshError(
                f"the ranks are no longer alike: {'; '.join(wrong)}; memory or weights of that rank changed, "
                "or its arithmetic is another: start all of them again"
            )


class LeaderSteps:
    """Runs steps on all ranks. Between steps it tells the others that it is still alive."""

    def __init__(self, engine: SplitEngine, steps: Steps) -> None:
        self._engine, self._steps, self._ranks = engine, steps, engine.ranks
        self._proof = _Proof()
        self._line = _Line(engine.ranks)
        threading.Thread(
            target=_keep_alive, args=(ref(self._line), engine.ranks.timeout / 4), daemon=True
        ).start()
        atexit.register(_close, ref(self._line))

    def run(self, step: StepInputs, *, hidden: bool) -> Output:
        """Computes the step on all ranks; the result is complete, as logits are gathered.

        Raises:
            MeshError: a rank is lost, now or earlier, or they no longer match.
            UnsupportedModelError: the weights changed.
        """
        self._engine.refuse_changed()
        with self._line.taken():
            due = (self._proof.steps + 1) % CHECK_EVERY == 0
            message = of_step(step, self._proof.steps + 1, hidden=hidden or due)
            self._proof.note(message)
            for part in message:
                if part.numel():
                    self._ranks.share(part, "were told of a step")
            output = self._steps.run(step, hidden=hidden or due)
            if due:
                self._proof.compare(self._ranks, output)
        return output if hidden else output._replace(hidden=None)

    def close(self) -> None:
        """Releases the others. Later steps raise."""
        self._line.close()


class FollowerSteps:
    """Runs on this rank what the leader announces, and nothing else."""

    def __init__(self, engine: SplitEngine, steps: Steps) -> None:
        self._engine, self._steps, self._ranks = engine, steps, engine.ranks
        self._proof = _Proof()

    def run(self, step: StepInputs, *, hidden: bool) -> Output:
        raise MeshError(
            f"rank {self._ranks.rank} of {self._ranks.size} follows: call the decoder's follow(), and search "
            "on rank 0 alone"
        )

    def close(self) -> None:
        """Does nothing: there is nobody to release."""

    def follow(self) -> None:
        """Returns when the leader is done.

        Raises:
            MeshError: another rank is lost, or this one no longer matches the leader.
            UnsupportedModelError: the weights changed.
        """
        while True:
            header = self._ranks.share(of_kind(Kind.STILL_HERE))
            kind = int(header[0])
            if kind == Kind.END:
                return
            if kind == Kind.STEP:
                self._step(Message(header, *rooms_for(header)))

    def _step(self, message: Message) -> None:
        for room in message[1:]:
            if room.numel():
                self._ranks.share(room, "were told of a step")
        self._engine.refuse_changed()
        self._proof.note(message)
        try:
            step, hidden = step_of(message)
        except ValueError as error:
            raise self._unlike(str(error)) from error
        if int(message.header[1]) != self._proof.steps:
            raise self._unlike(f"got step {int(message.header[1])}, expected {self._proof.steps}")
        output = self._steps.run(step, hidden=hidden)
        if self._proof.due:
            self._proof.compare(self._ranks, output)

    def _unlike(self, what: str) -> MeshError:
        return MeshError(f"rank {self._ranks.rank} of {self._ranks.size}: {what}: start all of them again")


class _Line:
    """The leader's channel to the others, which one thread holds at a time.

    Attributes:
        ended: why nothing more is sent; "" while it is open.
    """

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks
        self.ended = ""
        self._lock = threading.Lock()

    def taken(self) -> _Taken:
        return _Taken(self)

    def acquire(self) -> None:
        self._lock.acquire()
        if self.ended:
            self._lock.release()
            raise MeshError(f"the ranks are apart: {self.ended}")

    def release(self, error: BaseException | None) -> None:
        if error is not None:  # in the middle of a joint operation
            self.ended = str(error) or type(error).__name__
        self._lock.release()

    def still_here(self) -> bool:
        """Sends a sign of life; returns False if nobody is left to receive it."""
        try:
            with self.taken():
                self.ranks.share(of_kind(Kind.STILL_HERE), "were told that the leader is there")
        except MeshError:
            return False
        return True

    def close(self) -> None:
        with self._lock:
            if self.ended:
                return
            self.ended = "the decoder was closed: make a new one on all ranks"
            self.ranks.share(of_kind(Kind.END), "were let go")


class _Taken:
    """A context in which one thread holds the line; a failure inside ends the line."""

    def __init__(self, line: _Line) -> None:
        self._line = line

    def __enter__(self) -> None:
        self._line.acquire()

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        self._line.release(error)


def _keep_alive(line: ref[_Line], seconds: float) -> None:
    while True:
        threading.Event().wait(seconds)
        known = line()
        if known is None or not known.still_here():
            return
        del known


def _close(line: ref[_Line]) -> None:
    known = line()
    if known is not None:
        try:
            known.close()
        except MeshError:
            return  # they are gone already
