"""The thread of a pool, which handles all events of searches and actors in order."""

from __future__ import annotations

import contextlib
import itertools
import logging
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import Any

from ..decoding.decoder import TreeDecoder
from ..errors import ClusterError, JournalError
from .actor import Finished, Report
from .dispatch import Dispatch
from .fleet import Fleet, Member, listed, raised, reason
from .journals import JournalCopy
from .totals import PoolStats, total
from .work import Ended, Work

_log = logging.getLogger(__name__)

_REPORT_SECONDS = 0.5  # between reports of an actor
_LOOK_SECONDS = 1.0  # between checks for silent and missing actors
_LAST_WORDS_SECONDS = 3.0  # for actors to send their journals at the end
_TELL_SECONDS = 2.0  # between reports of what the pool waits for before it can begin
_MOST_WAIT = 60.0  # longest wait before retrying a place where actors die as they start
_FAILURES = 6  # consecutive deaths of actors, without a search that ended, after which the pool gives up


@dataclass
class _Order:
    work: Work[Any]
    future: Future[Ended[Any]]
    deaths: int = 0
    copy: JournalCopy | None = None

    def close(self) -> None:
        if self.copy is not None:
            self.copy.close()
            self.copy = None


class Service:
    """One thread does everything; it takes its tasks from a queue."""

    def __init__(self, fleet: Fleet, in_flight: int, attempts: int) -> None:
        self._fleet = fleet
        self._attempts = attempts
        self._dispatch: Dispatch[int, int] = Dispatch(in_flight, attempts, fleet.pinned)
        self._orders: dict[int, _Order] = {}
        self._keys = itertools.count()
        self._ended = 0
        self._failures = 0
        self._next_start = 0.0
        self._next_look = time.monotonic()
        self._alone_since: float | None = None  # since when there has been no actor
        self._broken: ClusterError | None = None
        self._closing = False
        self._todo: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._first: Future[None] = Future()  # done when an actor has its decoder, or none will
        for member in fleet.opening.values():
            self._await(member)
        self._thread = threading.Thread(target=self._run, name="SearchPool", daemon=True)
        self._thread.start()

    # -- calls of other threads

    def await_first(self, on_wait: Callable[[str], None] | None) -> None:
        """Waits until an actor has its decoder. Raises ClusterError: one cannot make it, none is in time."""
        began = time.monotonic()
        while not wait([self._first], _TELL_SECONDS).done:
            opening = list(self._fleet.opening.values())
            if on_wait is not None and opening:
                first = "actor" if len(opening) == 1 else f"first of {len(opening)} actors"
                on_wait(f"waiting {time.monotonic() - began:.0f} s for the {first}: {listed(opening)}")
        self._first.result()

    @property
    def in_flight(self) -> int:
        return self._dispatch.in_flight

    @in_flight.setter
    def in_flight(self, count: int) -> None:
        self._dispatch.in_flight = count
        self._todo.put(lambda: None)

    def submit(self, work: Work[Any]) -> Future[Ended[Any]]:
        self._refuse_closed()
        future: Future[Ended[Any]] = Future()
        beginning = work.beginning
        self._todo.put(lambda: self._take(work, beginning, future))
        return future

    def stats(self) -> PoolStats:
        members = list(self._fleet.members.values())
        told = [one for member in members for one in member.stats]
        return PoolStats(
            len(members),
            max(self._fleet.wanted, len(members)),
            self._fleet.lost,
            self._dispatch.waiting,
            self._dispatch.running,
            self._ended,
            total([*self._fleet.past, *told]),
        )

    def renew(self, make_decoder: Callable[[], TreeDecoder]) -> None:
        self._refuse_closed()
        done: Future[None] = Future()

        def renew() -> None:
            try:
                self._renew(make_decoder)
                done.set_result(None)
            except Exception as error:
                done.set_exception(error)

        self._todo.put(renew)
        done.result()

    def ask(self, question: Callable[[TreeDecoder], Any]) -> list[Any]:
        import ray

        answers = []
        for call in [member.handle.ask.remote(question) for member in list(self._fleet.members.values())]:
            try:
                answers.append(ray.get(call, timeout=self._fleet.silent_seconds))
            except ray.exceptions.RayTaskError as error:
                raise raised(error) from error
            except (ray.exceptions.RayError, TimeoutError):
                continue
        if not answers:
            raise ClusterError("no actor is left to answer: look at the nodes, and make a new pool")
        return answers

    def close(self) -> None:
        if not self._closing:
            self._closing = True
            self._todo.put(lambda: None)
            self._thread.join()

    def _refuse_closed(self) -> None:
        if self._closing:
            raise ClusterError("the pool is closed: make a new one")

    # -- the thread

    def _run(self) -> None:
        try:
            while not self._closing:
                with contextlib.suppress(queue.Empty):
                    self._todo.get(timeout=_LOOK_SECONDS)()
                if time.monotonic() >= self._next_look:
                    self._look_around()
                    self._next_look = time.monotonic() + _LOOK_SECONDS
                self._hand_out()
        except BaseException as error:
            self._break(ClusterError(f"the pool failed: {type(error).__name__}: {error}"))
            raise
        finally:
            self._closing = True
            self._last_words()
            self._fleet.close()
            self._first.cancel()
            for order in self._orders.values():
                order.close()
                order.future.cancel()

    def _after(self, call: Any, then: Callable[[Callable[[], Any]], None]) -> None:
        """Makes the thread call `then`, with a function that returns the result, after a Ray call ends."""
        call.future().add_done_callback(lambda done: self._todo.put(lambda: then(done.result)))

    # -- searches

    def _take(self, work: Work[Any], beginning: str, future: Future[Ended[Any]]) -> None:
        if self._broken is not None:
            if future.set_running_or_notify_cancel():
                future.set_exception(self._broken)
            return
        key = next(self._keys)
        self._orders[key] = _Order(work, future)
        self._dispatch.submit(key, beginning)

        def look(done: Future[Ended[Any]]) -> None:
            if done.cancelled():
                self._todo.put(lambda: self._withdraw(key))

        future.add_done_callback(look)

    def _withdraw(self, key: int) -> None:
        """Drops a search that nobody waits for any more."""
        actor = self._dispatch.withdraw(key)
        if actor is None:
            if (order := self._orders.pop(key, None)) is not None:
                order.close()
        elif actor in self._fleet.members:
            self._fleet.members[actor].handle.cancel.remote(key)

    def _hand_out(self) -> None:
        for number, key in self._dispatch.assignments():
            member, order = self._fleet.members[number], self._orders[key]
            path = order.work.journal
            try:
                if path is not None and order.copy is None:
                    order.copy = JournalCopy(path)
                content = None if order.copy is None else order.copy.content()
                call = member.handle.search.remote(key, order.work, content, str(path))
            except Exception as error:  # its journal cannot be used, or it cannot be pickled
                self._dispatch.ended(number, key)
                self._finish(key, Finished(error=error), str(member))
                continue
            self._after(call, lambda result, m=member, k=key: self._end(m, k, result))  # type: ignore[misc]

    def _end(self, member: Member, key: int, result: Callable[[], Finished]) -> None:
        import ray

        try:
            finished = result()
        except ray.exceptions.RayTaskError as error:
            finished = Finished(error=raised(error))
        except Exception as error:
            self._lose(member, error)
            return
        if self._dispatch.ended(member.number, key):
            self._failures = 0
            self._finish(key, finished, str(member))

    def _finish(self, key: int, finished: Finished, actor: str) -> None:
        order = self._orders.pop(key, None)
        if order is None:
            return
        if order.copy is not None and finished.rest is not None:
            with contextlib.suppress(JournalError):  # its content is complete
                order.copy.add(finished.rest)
        order.close()
        self._ended += not finished.cancelled
        if order.future.set_running_or_notify_cancel():
            order.future.set_result(Ended(order.work, finished.value, finished.error, actor, order.deaths))

    # -- actors

    def _await(self, member: Member) -> None:
        self._after(member.opening, lambda result: self._opened(member, result))

    def _welcome(self, member: Member) -> None:
        if not self._first.done():
            self._first.set_result(None)
        self._dispatch.join(member.number)
        self._ask_report(member)

    def _ask_report(self, member: Member) -> None:
        call = member.handle.report.remote(_REPORT_SECONDS)
        self._after(call, lambda result: self._reported(member, result))

    def _reported(self, member: Member, result: Callable[[], Report]) -> None:
        try:
            report = result()
        except Exception as error:
            self._lose(member, error)
            return
        if member.number in self._fleet.members:
            self._take_in(member, report)
            self._ask_report(member)

    def _take_in(self, member: Member, report: Report) -> None:
        member.answered, member.stats = time.monotonic(), report.stats
        for key, piece in report.pieces.items():
            order = self._orders.get(key)
            if order is None or order.copy is None or self._dispatch.runs(key) != member.number:
                continue
            try:
                order.copy.add(piece)
            except JournalError as error:  # the search cannot continue without its journal
                member.handle.cancel.remote(key)
                self._dispatch.ended(member.number, key)
                self._finish(key, Finished(error=error), str(member))

    def _lose(self, member: Member, error: BaseException) -> None:
        """Handles a dead actor: its searches run again on others."""
        if not self._fleet.leave(member):
            return
        self._failures += 1
        again, given_up = self._dispatch.leave(member.number)
        for key in (*again, *given_up):
            self._orders[key].deaths += 1
            if self._orders[key].future.cancelled():
                self._withdraw(key)
        _log.warning("%s is lost, %d searches run again: %s", member, len(again), reason(error))
        for key in given_up:
            self._failures = 0
            deaths = self._orders[key].deaths if key in self._orders else 0
            message = f"{deaths} actors died while they ran this search, last {member}: {reason(error)}"
            self._finish(key, Finished(error=ClusterError(message)), str(member))
        self._delay(f"{member}: {reason(error)}")

    def _look_around(self) -> None:
        now = time.monotonic()
        for member in list(self._fleet.members.values()):
            if now - member.answered > self._fleet.silent_seconds:
                self._lose(member, TimeoutError(f"it was silent for {self._fleet.silent_seconds:g} s"))
        self._give_up_late()
        if self._fleet.members:
            self._alone_since = None
        elif self._alone_since is None:
            self._alone_since = now
        if now < self._next_start or self._broken is not None:
            return
        try:
            for place in self._fleet.vacant():
                self._await(self._fleet.start(place))
        except Exception as error:  # no room, or the head does not answer
            if self._alone_since is not None and now - self._alone_since > self._fleet.start_seconds:
                left_out = len(self._fleet.trials.left_out)
                besides = f"; {left_out} nodes are left out, as the log says" if left_out else ""
                self._break(ClusterError(f"no actor is left: {error}{besides}"))

    def _give_up_late(self) -> None:
        late = self._fleet.give_up_late()
        if late and not (self._fleet.members or self._fleet.opening):
            self._break(self._fleet.too_late(late))
            return
        for member in late:
            self._not_opened(member, self._fleet.too_late([member]))

    def _opened(self, member: Member, result: Callable[[], Any]) -> None:
        if member.number not in self._fleet.opening:  # it took too long
            return
        if self._fleet.reopen(member):
            self._await(member)
            return
        try:
            self._fleet.opened(member, result)
        except ClusterError as error:
            self._not_opened(member, error)
            return
        self._welcome(member)

    def _not_opened(self, member: Member, error: ClusterError) -> None:
        """Handles an actor without a decoder. If others have theirs, only its node gets fewer tries."""
        fleet, node = self._fleet, member.place.node
        if not self._first.done():
            self._break(error)
        elif fleet.proven and fleet.members:
            reported = fleet.trials.failed(node.id, time.monotonic())
            then = "the node gets no more" if node.id in fleet.trials.left_out else "another one is tried"
            _log.log(logging.WARNING if reported else logging.INFO, "%s; %s", error, then)
        else:
            _log.warning("%s", error)
            self._failures += 1
            self._delay(str(error))

    def _renew(self, make_decoder: Callable[[], TreeDecoder]) -> None:
        """Renews the decoders. There are no searches, so the thread may wait."""
        import ray

        if self._broken is not None:
            raise self._broken
        if self._orders:
            raise ClusterError(
                f"renew: {len(self._orders)} searches are under way; wait until they have ended"
            )
        self._fleet.make_decoder, self._fleet.proven = make_decoder, False
        members = list(self._fleet.members.values())
        calls = [member.handle.open.remote(make_decoder) for member in members]
        ray.wait(calls, num_returns=len(calls), timeout=self._fleet.start_seconds, fetch_local=False)
        failure: Exception | None = None
        for member, call in zip(members, calls, strict=True):
            member.made_by, member.answered = make_decoder, time.monotonic()
            try:
                self._fleet.compare(member, ray.get(call, timeout=0))
                self._fleet.proven = True
            except ray.exceptions.RayTaskError as error:
                failure = raised(error)
            except ClusterError as error:
                failure = error
            except (ray.exceptions.RayError, TimeoutError) as error:
                self._lose(member, error)
        if failure is not None:
            raise failure

    def _delay(self, last: str) -> None:
        """Delays new actors more after each consecutive failure, and finally stops starting them."""
        fleet = self._fleet
        if self._failures > 1:
            self._next_start = time.monotonic() + min(2.0**self._failures / 4, _MOST_WAIT)
        if self._failures >= max(_FAILURES, self._attempts + 2, 3 * len(fleet.members)):
            self._break(ClusterError(f"{self._failures} actors failed in a row, last {last}"))

    def _break(self, error: ClusterError) -> None:
        """Ends all searches with the error, as nothing more can be done."""
        self._broken = error
        if not self._first.done():
            self._first.set_exception(error)
        for order in self._orders.values():
            order.close()
            if order.future.set_running_or_notify_cancel():
                order.future.set_exception(error)
        for key in self._orders:
            self._dispatch.withdraw(key)
        self._orders.clear()

    def _last_words(self) -> None:
        """Cancels what is running, and takes in the rest of its journals."""
        for key in [key for key, order in self._orders.items() if order.copy is not None]:
            self._withdraw(key)
        until = time.monotonic() + _LAST_WORDS_SECONDS
        while any(order.copy for order in self._orders.values()) and time.monotonic() < until:
            with contextlib.suppress(queue.Empty):
                self._todo.get(timeout=0.1)()
