"""Batches what the waiting branches ask for into single forwards of the model.

Requests of any number of coroutines wait here. When the event loop has nothing else to do the scheduler
takes one tick: it feeds the tokens that lack KV (one for a branch that decodes, a chunk for a prompt) in one
forward, samples for all branches that are in a step, and resolves the requests that are done. There is no
barrier: each request leaves when it is done and new ones join at the next tick.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from tts_decode.accounting import CostMeter
from tts_decode.branch import Branch
from tts_decode.calls import current_call
from tts_decode.engines.steps import StepInputs
from tts_decode.errors import BranchReleased, StaleKV
from tts_decode.requests import (
    AdvanceRequest,
    EmbedsRequest,
    ExtendRequest,
    Feed,
    ReadRequest,
    ReplayRequest,
    Request,
    RootRequest,
    StepRequest,
)
from tts_decode.sampling import SamplingParams, sample, uniform
from tts_decode.sparse import SparseReads
from tts_decode.steps import Step
from tts_kernels import OutOfPages

if TYPE_CHECKING:
    from tts_decode.decoder import TreeDecoder

# Loop cycles without a new request before a tick. A resolved future needs a few cycles to wake a strategy
# behind `gather` and to come back as new requests; a cycle costs microseconds, a tick milliseconds.
_QUIET_CYCLES = 6

# Id in the tree of a token that no prompt is to match: above every vocabulary, within int32.
_UNMATCHED = 2**31 - 1


class Scheduler:
    """The queue of waiting requests and the task that serves them, started lazily on the running loop."""

    def __init__(self, decoder: TreeDecoder, max_batch_tokens: int) -> None:
        self.steps = 0
        self.forward_tokens = 0
        self.generated_tokens = 0
        self.seconds = 0.0
        shape = replace(decoder._engine.shape, kv_bytes=decoder._pool.dtype.itemsize)
        self.meter = CostMeter(shape, decoder._pool.page_size)
        self._decoder = decoder
        self._max_batch_tokens = max_batch_tokens
        self._waiting: list[Request] = []
        self._arrivals = 0
        self._stuck_alone = False  # at the last tick: out of pages, and nobody else at work to free some
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None

    # -- requests

    async def root(self, request: RootRequest) -> Branch:
        try:
            branch: Branch = await self._submit(request)
        except asyncio.CancelledError:
            request.undo()  # also a branch that was ready, but did not reach its caller any more
            raise
        return branch

    async def step(self, branch: Branch, params: SamplingParams, seed: int) -> Step:
        step: Step = await self._submit(StepRequest(branch, params, seed))
        return step

    async def extend(self, branch: Branch, tokens: list[int]) -> list[float]:
        logprobs: list[float] = await self._submit(ExtendRequest(branch, tokens))
        return logprobs

    async def read(self, branch: Branch, tokens: list[int], rows: list[int]) -> Tensor:
        hidden: Tensor = await self._submit(ReadRequest(branch, tokens, rows))
        return hidden

    async def extend_embeds(self, branch: Branch, embeds: Tensor) -> Tensor:
        hidden: Tensor = await self._submit(EmbedsRequest(branch, embeds))
        return hidden

    async def replay(self, branch: Branch, step: Step) -> None:
        await self._submit(ReplayRequest(branch, step))

    async def advance(self, branch: Branch) -> None:
        await self._submit(AdvanceRequest(branch))

    async def _submit(self, request: Request) -> Any:
        loop = asyncio.get_running_loop()
        self._join(loop)
        request.future = loop.create_future()
        request.start()
        if (call := current_call()) is not None:
            call.add(request, self._note_arrival)
        self._waiting.append(request)
        self._note_arrival()
        self._decoder._kv.serving = loop
        if self._task is None or self._task.done():
            # Not by a task factory: what that makes of a caller's tasks does not concern the decoder's.
            self._task = asyncio.Task(self._serve(), loop=loop)
        try:
            return await request.future
        except asyncio.CancelledError:
            if request.future.cancelled():  # else it was done already, and only its caller is cancelled
                self._drop_done()
                request.undo()
            raise

    def _note_arrival(self) -> None:
        """The next tick waits for those that come with it."""
        self._arrivals += 1

    def _join(self, loop: asyncio.AbstractEventLoop) -> None:
        """Serves from this loop from now on. What another one left waiting when it was closed is given up."""
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
        except Exception as error:
            self._fail(self._waiting, error)  # nobody may wait for a task that ended
            raise
        finally:
            self._decoder._kv.serving = None

    def _tick(self) -> None:
        """One forward, or less, for those that are not held."""
        started = time.perf_counter()
        self._drop_done()  # cancelled ones
        held = [request for request in self._waiting if request.held]
        if held:
            self._waiting = [request for request in self._waiting if not request.held]
        for order, request in enumerate(self._waiting):
            request.note_tick(order)
        try:
            if self._waiting:
                self._serve_waiting()
        finally:
            if held:
                self._waiting = sorted([*self._waiting, *held], key=_held_order)
        self.seconds += time.perf_counter() - started

    def _serve_waiting(self) -> None:
        self._decoder._follow_weights()
        for request in self._waiting:
            if request.admitted:
                self._check_branch(request)
        self._drop_done()
        self._admit_roots()
        turn = self._turn()
        batch = self._begin(turn)
        if not batch and self._wants_pages(turn):
            turn = self._waiting  # whoever can goes on
            batch = self._begin(turn)
        try:
            logits = self._forward(batch) if batch else None
        except Exception as error:
            self._fail([feed.request for feed in batch], error)
        else:
            self._sample(turn, batch, logits)
        self._drop_done()
        passed = [{id(request) for request in turn}, {id(feed.request) for feed in batch}]
        # Next time those come first that were not served, and before them those that had no turn.
        self._waiting.sort(key=lambda request: [id(request) in requests for requests in passed])
        for order, request in enumerate(self._waiting):
            request.order = order

    def _check_branch(self, request: Request) -> None:
        """Fails a request whose branch was released, or lost its KV, while it waited."""
        branch = request.branch
        if branch.released:
            self._fail([request], BranchReleased(f"branch {branch.id} was released while it waited"))
        elif request.starts_over:
            branch.stale = False
        else:
            try:
                branch._check_computed()
            except StaleKV as error:
                self._fail([request], error)

    def _fail(self, requests: Iterable[Request], error: Exception) -> None:
        for request in requests:
            if not request.future.done():
                request.undo()
                request.future.set_exception(error)

    def _drop_done(self) -> None:
        self._waiting = [request for request in self._waiting if request.waits]

    def _admit_roots(self) -> None:
        """Gives waiting prompts their branch. A prompt whose first page is being computed for another prompt
        waits for that one, to share it."""
        page = self._decoder._tree.page_size
        roots = [request for request in self._waiting if isinstance(request, RootRequest)]
        running = {tuple(root.tokens[:page]) for root in roots if root.admitted}
        for root in roots:
            first_page = tuple(root.tokens[:page])
            if not root.admitted and first_page not in running:
                root.admit()
                running.add(first_page)

    def _turn(self) -> list[Request]:
        """Requests that go on in this tick.

        Where the branches of a tree choose pages together it is all of a tree or none of it, as far as it
        fits into a forward: what else is in the batch does not tell who chooses with whom. A run that waits
        alone in its tree goes on in chunks.
        """
        sparse = self._decoder._sparse
        if sparse is None or sparse.share == "branch":
            return self._waiting
        trees: dict[int, list[Request]] = {}
        for request in self._waiting:
            if request.admitted:
                trees.setdefault(request.branch._lineage.tree, []).append(request)
        rows = self._max_batch_tokens
        turn: list[Request] = []
        runs: list[Request] = []
        for requests in trees.values():
            count = sum(len(self._next_tokens(request)) for request in requests)
            if len(requests) == 1 and count > 1:
                runs += requests
            elif (needed := min(count, self._max_batch_tokens)) <= rows:
                turn += requests
                rows -= needed
        return turn + runs

    def _wants_pages(self, turn: list[Request]) -> bool:
        """Whether a turn of some of the requests, which fed nothing, did so for want of pages."""
        waiting = [request for request in turn if request.waits]
        return len(waiting) < len(self._waiting) and any(request.missing() for request in waiting)

    def _begin(self, turn: list[Request]) -> list[Feed]:
        """Closes the requests that need no model, and chooses what the others feed."""
        for request in turn:
            request.begin_tick()
        self._drop_done()
        return self._choose_batch([request for request in turn if request.waits])

    def _choose_batch(self, turn: list[Request]) -> list[Feed]:
        """Tokens to feed in this tick: single ones first, then runs in chunks; as rows and pages go."""
        tree, kv = self._decoder._tree, self._decoder._kv
        rows, pages, taken = self._max_batch_tokens, kv.free_pages, 0
        batch: list[Feed] = []
        blocked: tuple[Request, int] | None = None
        wanted = [(request, self._next_tokens(request)) for request in turn if request.admitted]
        for request, tokens in sorted(wanted, key=lambda item: len(item[1]) > 1):
            count = min(len(tokens), rows)
            if not count:
                continue
            needed = tree.pages_needed(request.branch.id, count)
            if needed > pages - taken and kv.pins_left:
                kv.make_room(taken + needed)
                pages, needed = kv.free_pages, tree.pages_needed(request.branch.id, count)
            if needed > pages - taken:
                blocked = blocked or (request, needed)
                continue
            taken += needed
            rows -= count
            batch.append(Feed(request, tokens[:count]))
        if not batch and len(turn) < len(self._waiting):
            return batch  # others may go on
        stuck = blocked is not None and not batch and all(tokens for _, tokens in wanted)
        kv.serving = None if stuck else self._loop
        alone = stuck and not kv.others_serve(self._loop)
        if blocked and alone and self._stuck_alone:  # twice: who got its answer just now may release branches
            self._fail([blocked[0]], self._out_of_pages(*blocked))
        self._stuck_alone = alone
        return batch

    def _next_tokens(self, request: Request) -> list[int]:
        """Missing tokens that one forward may take. A token that reads sparsely goes alone: a page's summary
        counts all that is written in it, later tokens of the forward too."""
        tokens = request.missing()
        if request.hold is not None:
            tokens = tokens[: max(0, request.hold.resident - request.branch._kv_length)]
        alone = self._decoder._sparse is not None and request.branch._kv_length < request.forced_from
        return tokens[:1] if alone else tokens

    def _out_of_pages(self, request: Request, needed: int) -> OutOfPages:
        kv = self._decoder._kv
        pages, size, budget = kv.tree.num_pages, kv.page_bytes, kv.budget
        limit = f"(kv_bytes = {pages * size}): raise kv_bytes"
        if budget.decoders > 1:
            limit = (
                f"(a KVBudget of {budget.total} bytes, of which {budget.decoders} decoders hold "
                f"{budget.resident}): raise it"
            )
        return OutOfPages(
            f"branch {request.branch.id} needs {needed} more KV pages ({needed * size} bytes), but "
            f"{kv.free_pages} of {pages} are free {limit}, lower n, or release branches"
        )

    def _forward(self, batch: list[Feed]) -> Tensor:
        """One forward for all feeds; hands out its rows, returns all logits (float32 [rows, vocab])."""
        decoder = self._decoder
        tree = decoder._tree
        branches = [feed.request.branch for feed in batch]
        ids = [branch.id for branch in branches]
        reads = self._reads(batch)
        appended = tree.append(ids, self._tree_tokens(batch, reads))
        decoder._kv.note_peak()
        try:
            tables, lengths = tree.block_tables(ids)
            counts = np.array([len(feed.tokens) for feed in batch], dtype=np.int32)
            tokens: list[int] = []
            positions: list[int] = []
            embeds: list[Tensor] = []
            rows: list[int] = []  # tokens whose logits are wanted
            for branch, feed in zip(branches, batch, strict=True):
                count = len(feed.tokens)
                rows.extend(len(tokens) + row for row in feed.request.logit_rows(count))
                tokens.extend(feed.tokens)
                places = range(branch._kv_length, branch._kv_length + count)
                positions.extend(places)
                if min(feed.tokens) < 0:
                    embeds.extend(
                        feed.request.embeds(place)
                        for place, token in zip(places, feed.tokens, strict=True)
                        if token < 0
                    )
                feed.rows_end = len(rows)
                feed.tokens_end = len(tokens)
            step = StepInputs(
                tokens,
                positions,
                rows,
                appended.slots,
                appended.copies,
                tables,
                lengths,
                counts,
                reads,
                torch.stack(embeds) if embeds else None,
            )
            hidden = any(feed.request.needs_hidden for feed in batch)
            output = decoder._steps.run(step, hidden=hidden)
        except BaseException:
            for branch in branches:
                tree.truncate(branch.id, branch._kv_length)
            raise
        self.meter.add(branches, step, output.pages, output.sparse)
        self.steps += 1
        self.forward_tokens += len(tokens)
        row = token = 0
        for feed in batch:
            states = None if output.hidden is None else output.hidden[token : feed.tokens_end]
            if output.masses is not None:
                feed.request.branch._add_mass(output.masses[token : feed.tokens_end].sum(0).numpy())
            try:
                feed.request.fed(len(feed.tokens), output.logits[row : feed.rows_end], states)
            except Exception as error:
                self._fail([feed.request], error)
            row, token = feed.rows_end, feed.tokens_end
        return output.logits

    def _reads(self, batch: list[Feed]) -> SparseReads | None:
        """What each token of a forward reads; None: everything."""
        sparse = self._decoder._sparse
        if sparse is None:
            return None
        branches = [feed.request.branch for feed in batch]
        begins = np.array([branch._kv_length for branch in branches])
        counts = np.array([len(feed.tokens) for feed in batch])
        forced = np.array([feed.request.forced_from for feed in batch]) <= begins
        lineages = [branch._lineage for branch in branches]
        return sparse.reads(begins, counts, forced, lineages, self._decoder._pool.page_size)

    def _tree_tokens(self, batch: list[Feed], reads: SparseReads | None) -> list[list[int]]:
        """Ids under which the tree keeps the tokens of each feed.

        No prompt matches embeddings, nor tokens that read only part of the pages: in a prompt they would get
        other keys and values.
        """
        if reads is None:
            return [[t if t >= 0 else _UNMATCHED for t in feed.tokens] for feed in batch]
        private = iter(reads.private.tolist())
        return [[_UNMATCHED if next(private) or t < 0 else t for t in feed.tokens] for feed in batch]

    def _sample(self, turn: list[Request], batch: list[Feed], fresh: Tensor | None) -> None:
        """Draws a token for every branch in a step whose logits are there. `fresh`: the logits of `batch`."""
        stepping = [
            request
            for request in turn
            if isinstance(request, StepRequest) and request.samples and request.waits and not request.held
        ]
        if not stepping:
            return
        if fresh is not None and len(fresh) == len(batch) and stepping == [feed.request for feed in batch]:
            logits = fresh
        else:
            logits = torch.stack([request.logits for request in stepping])
        try:
            sampled = sample(
                logits,
                [request.params for request in stepping],
                [uniform(request.seed, len(request.branch.tokens)) for request in stepping],
                [request.branch.tokens for request in stepping],
            )
        except ValueError as error:
            for request, finite in zip(stepping, logits.logsumexp(-1).isfinite().tolist(), strict=True):
                if not finite:
                    self._fail([request], error)
                    request.branch._drop_logits()
            return  # the others are sampled in the next tick
        for request, token, logprob, entropy in zip(stepping, *sampled, strict=True):
            try:
                self.generated_tokens += request.take(token, logprob, entropy)
            except Exception as error:
                self._fail([request], error)


def _held_order(request: Request) -> int:
    """Requests that are held come to wait in the order in which they waited when their search was
    interrupted."""
    return request.order if request.hold is None else request.hold.order
