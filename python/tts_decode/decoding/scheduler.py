"""Batches what the waiting branches request into single forwards of the model.

Requests of any number of coroutines wait here. When the event loop has nothing else to do, the scheduler
takes one tick: it feeds the tokens that lack KV (one per decoding branch, a chunk per prompt) in one forward,
samples for all branches that are in a step, and resolves the requests that are done. There is no barrier:
each request leaves when it is done, and new ones join at the next tick.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from typing import Any, TypeVar

from ..core.progress import current_call
from ..errors import BranchReleasedError, StaleKVError
from .compression import compress_if_over
from .drawing import draw_tokens
from .forwards import Forwards
from .requests import Feed, Request, RootRequest
from .runtime import Runtime
from .sparse_batch import whole_trees

T = TypeVar("T")

# Loop cycles without a new request before a tick. A resolved future needs a few cycles to wake a strategy
# through `gather` and to return as new requests; a cycle costs microseconds, a tick milliseconds.
_QUIET_CYCLES = 6
_IDLE = 0.001  # seconds between ticks while all waiting requests are held


class Scheduler:
    """The queue of waiting requests and the task that serves them, started lazily on the running loop."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.forwards = Forwards(runtime)
        self.generated_tokens = 0
        self.seconds = 0.0
        self._waiting: list[Request[Any]] = []
        self._arrivals = 0
        self._short_of_pages = False  # whether the last tick left out a request for lack of pages
        self._stays = False  # requests served in the last tick continue in this one
        self._stuck_alone = False  # the last tick was out of pages, with nobody else running to free some
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None

    # -- requests

    async def submit(self, request: Request[T]) -> T:
        """Queues a request and waits for its result. A cancelled call is undone."""
        self.enqueue(request)
        try:
            return await request.future
        except asyncio.CancelledError:
            if request.future.cancelled() or request.undone_late:  # else only its caller is cancelled
                self.withdraw(request)
            raise

    def enqueue(self, request: Request[Any]) -> None:
        loop = asyncio.get_running_loop()
        self._join(loop)
        request.future = loop.create_future()
        request.start()
        if (call := current_call.get()) is not None:
            call.add(request, self._note_arrival)
        self._waiting.append(request)
        self._note_arrival()
        self.runtime.kv.serving = loop
        if self._task is None or self._task.done():
            # Bypasses the loop's task factory, which is meant for the caller's tasks, not the decoder's.
            self._task = asyncio.Task(self._serve(), loop=loop)

    def withdraw(self, request: Request[Any]) -> None:
        """Undoes a request whose future was cancelled, or whose result nobody takes."""
        self._drop_done()
        request.undo()

    def _note_arrival(self) -> None:
        """Makes the next tick wait for requests that arrive together with this one."""
        self._arrivals += 1

    def _join(self, loop: asyncio.AbstractEventLoop) -> None:
        """Serves from this loop from now on; drops what a loop left waiting when it was closed."""
        if self._loop is loop:
            return
        if self._loop is not None and self._loop.is_running() and self._waiting:
            raise RuntimeError(
                "the decoder is in use in another thread: run all problems in one event loop, as run_all does"
            )
        for request in self._waiting:
            request.undo()
        self._waiting.clear()
        self._loop, self._task = loop, None

    # -- serving

    async def _serve(self) -> None:
        try:
            while self._waiting:
                quiet = 0
                while quiet < _QUIET_CYCLES:
                    arrivals = self._arrivals
                    await asyncio.sleep(0)
                    quiet = quiet + 1 if self._arrivals == arrivals else 0
                self._tick()
                if self._waiting and all(request.held for request in self._waiting):
                    await asyncio.sleep(_IDLE)
        except Exception as error:
            self._fail(self._waiting, error)  # nothing may wait for a task that ended
            raise
        finally:
            self.runtime.kv.serving = None

    def _tick(self) -> None:
        """Runs at most one forward for the requests that are not held."""
        started = time.perf_counter()
        held: list[Request[Any]] = []
        going: list[Request[Any]] = []
        for request in self._waiting:
            if request.future.done():  # it was cancelled
                continue
            if request.hold is not None and request.held:
                held.append(request)
                continue
            request.seen, request.order = True, len(going)
            if request.call is not None:
                request.call.clock.ticks += 1
            going.append(request)
        self._waiting = going
        try:
            if going:
                self._serve_waiting()
        finally:
            if held:
                self._waiting = sorted([*self._waiting, *held], key=_held_order)
        self.seconds += time.perf_counter() - started

    def _serve_waiting(self) -> None:
        if self.runtime.engine.weights.check() != self.runtime.weights_epoch:
            self.runtime.follow_weights()
        for request in self._waiting:
            if request.admitted and (request.path.released or request.path.stale):
                self._check_path(request)
        self._drop_done()
        self._admit_roots()
        turn = self._turn()
        batch = self._begin(turn)
        if not batch and self._wants_pages(turn):
            turn = self._waiting  # whoever can continues
            batch = self._begin(turn)
        try:
            logits = self.forwards.run(batch) if batch else None
        except Exception as error:
            self._fail([feed.request for feed in batch], error)
        else:
            self._compress(batch)
            self.generated_tokens += draw_tokens(turn, batch, logits)
        self._drop_done()
        if len(self._waiting) > 1:
            self._sort_waiting(turn, batch)
        for order, request in enumerate(self._waiting):
            request.order = order

    def _sort_waiting(self, turn: list[Request[Any]], batch: list[Feed]) -> None:
        """Sorts requests for the next tick: those without a turn come first, then those not served.

        If the latter lack pages, those that have theirs run to their end.
        """
        served = {id(feed.request) for feed in batch}
        for request in self._waiting:
            request.served = id(request) in served
        self._stays = self._lacks_pages()
        if self._stays:
            self._waiting.sort(key=lambda request: not request.served)
        elif not all(request.served for request in self._waiting):
            had_turn = {id(request) for request in turn}
            self._waiting.sort(key=lambda request: (id(request) in had_turn, request.served))

    def _lacks_pages(self) -> bool:
        """Whether a request that was not served waits for offloaded pages, or for room."""
        offload = self.runtime.kv.offload
        return offload is not None and (
            self._short_of_pages
            or any(
                request.admitted and not request.path.released and offload.missing(request.path.id)
                for request in self._waiting
                if not request.served
            )
        )

    def _check_path(self, request: Request[Any]) -> None:
        """Fails a request whose path was released, or lost its KV, while it waited."""
        path = request.path
        if request.future.done():
            return
        if path.released:
            self._fail([request], BranchReleasedError(f"branch {path.id} was released while it waited"))
        elif request.starts_over:
            path.stale = False
        else:
            try:
                path.check_computed()
            except StaleKVError as error:
                self._fail([request], error)

    def _fail(self, requests: Iterable[Request[Any]], error: Exception) -> None:
        for request in requests:
            request.fail(error)

    def _drop_done(self) -> None:
        self._waiting = [request for request in self._waiting if not request.future.done()]

    def _admit_roots(self) -> None:
        """Gives waiting prompts their path.

        A prompt whose next page is being computed for another prompt waits for that one, to share it.
        """
        roots = [request for request in self._waiting if isinstance(request, RootRequest)]
        running = [root for root in roots if root.admitted]
        for root in roots:
            if not root.admitted and not self._awaits_page(root, running):
                root.admit()
                running.append(root)

    def _awaits_page(self, root: RootRequest[Any], running: list[RootRequest[Any]]) -> bool:
        """Whether a prompt being computed will have a page of this one that is not resident yet.

        The rest of a prompt that fills no page counts too.
        """
        tree = self.runtime.tree
        shared = self.runtime.shareable(root.tokens, root.length)[: root.share_limit]
        alike = [other for other in running if other.has(root, 0, shared[: tree.page_size])]
        found = tree.match(shared) if alike else None
        resident = 0 if found is None else found[1]
        page = resident // tree.page_size
        needed = shared[page * tree.page_size : (page + 1) * tree.page_size]
        return len(shared) > resident and any(other.has(root, page, needed) for other in alike)

    def _turn(self) -> list[Request[Any]]:
        """Returns the requests that continue in this tick."""
        if not self._sparse_together:
            return self._waiting
        return whole_trees(self._waiting, self._next_tokens, self.runtime.max_batch_tokens)

    @property
    def _sparse_together(self) -> bool:
        """Whether branches of a tree choose pages together."""
        sparse = self.runtime.sparse
        return sparse is not None and sparse.share != "branch"

    def _wants_pages(self, turn: list[Request[Any]]) -> bool:
        """Whether a turn of some of the requests fed nothing for lack of pages."""
        waiting = [request for request in turn if not request.future.done()]
        return len(waiting) < len(self._waiting) and any(request.missing() for request in waiting)

    def _begin(self, turn: list[Request[Any]]) -> list[Feed]:
        """Closes the requests that need no model, and chooses what the others feed."""
        for request in turn:
            request.begin_tick()
        self._drop_done()
        return self._choose_batch(turn)

    def _choose_batch(self, turn: list[Request[Any]]) -> list[Feed]:
        """Chooses the tokens to feed in this tick, as rows and pages allow: single ones, then chunks."""
        tree, kv = self.runtime.tree, self.runtime.kv
        rows, free, reserved = self.runtime.max_batch_tokens, kv.free_pages, 0
        batch: list[Feed] = []
        blocked: tuple[Request[Any], int] | None = None
        singles: list[tuple[Request[Any], list[int]]] = []
        runs: list[tuple[Request[Any], list[int]]] = []
        others = len(self._waiting)  # requests without a turn
        for request in turn:
            if request.future.done():
                continue
            others -= 1
            if request.admitted:
                tokens = self._next_tokens(request)
                (runs if len(tokens) > 1 else singles).append((request, tokens))
        queue = [*singles, *runs]
        if self._stays:
            # Requests with pages continue first, then the one that has waited longest. It may be a run, which
            # would never get a turn beside single tokens that displace its pages.
            queue.sort(key=lambda entry: 0 if entry[0].served else 1 + entry[0].order)
        for place, (request, tokens) in enumerate(queue):
            count = min(len(tokens), rows)
            if not count:
                continue
            path_id = request.path.id
            new = tree.pages_needed(path_id, count)
            if new > free - reserved or (kv.offload is not None and kv.offload.missing(path_id)):
                fed = [feed.request.path.id for feed in batch]
                coming = [later.path.id for later, _ in queue[place + 1 :]]
                needed = kv.make_room(path_id, count, reserved, keep=fed, coming=coming)
                if needed:
                    free = kv.free_pages
                    blocked = blocked or (request, needed)
                    if kv.offload is not None and batch:
                        break  # the next room is reserved for this one: smaller later ones would take it
                    continue
                kv.reload(path_id)
                free, new = kv.free_pages, tree.pages_needed(path_id, count)
            reserved += new
            rows -= count
            batch.append(Feed(request, tokens if count == len(tokens) else tokens[:count]))
        self._short_of_pages = blocked is not None
        if blocked and self._sparse_together:
            # All of a tree or none of it, as in `whole_trees`, if others can continue meanwhile.
            tree_id = blocked[0].path.lineage.tree
            batch = [feed for feed in batch if feed.request.path.lineage.tree != tree_id] or batch
        if not batch and others:
            return batch  # the others may continue
        stuck = blocked is not None and not batch and all(tokens for _, tokens in singles)
        kv.serving = None if stuck else self._loop
        alone = stuck and not kv.others_serve(self._loop)
        if blocked and alone and self._stuck_alone:  # twice: a caller just served may release branches
            self._fail([blocked[0]], kv.out_of_pages(blocked[0].path.id, blocked[1]))
        self._stuck_alone = alone
        return batch

    def _next_tokens(self, request: Request[Any]) -> list[int]:
        """Returns the missing tokens that one forward may take.

        A token that reads sparsely is fed alone: a page's summary includes all that is written to it, also
        later tokens of the forward.
        """
        tokens = request.missing()
        if request.hold is not None:
            tokens = tokens[: max(0, request.hold.resident - request.path.kv_length)]
        alone = self.runtime.sparse is not None and request.path.kv_length < request.forced_from
        return tokens[:1] if alone else tokens

    def _compress(self, batch: list[Feed]) -> None:
        """Compresses the fed paths to the budget of the decoder's settings."""
        config = self.runtime.compress
        if config is None:
            return
        for feed in batch:
            if not feed.request.path.released:
                compress_if_over(self.runtime, self.forwards.meter, feed.request.path, config)


def _held_order(request: Request[Any]) -> int:
    """Sorts held requests into the order in which they waited when their search was interrupted."""
    return request.order if request.hold is None else request.hold.order
