"""Branch handles: a search algorithm's view of one path of the tree."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from tts_kernels.checks import instance, integer

from ..core.budget import Budget
from ..core.checks import check_embeds, check_recorded, checked_layers, checked_rows
from ..core.interfaces import Decoder
from ..core.params import SamplingParams
from ..core.prompts import Prompt
from ..core.state import BranchState
from ..core.step import FINAL_REASONS, Step, StepPiece, TopLogprobs
from .compression import compress_path, refuse_compression
from .compression_rule import check_rule
from .eviction import evict_columns
from .forced_requests import EmbedsRequest, ExtendRequest, ReadRequest, ReplayRequest
from .live_path import LivePath
from .requests import AdvanceRequest, LayersRequest, RootRequest
from .scheduler import Scheduler
from .step_request import step_request
from .streaming import step_pieces


class TreeBranch(LivePath):
    """One path from a prompt to a leaf; made only by `TreeDecoder.root` and `fork`.

    See `Path` for readable attributes. `decoder` is the owning TreeDecoder.
    """

    parent: TreeBranch | None

    def __init__(
        self,
        decoder: Decoder,
        scheduler: Scheduler,
        branch_id: int,
        prompt: Prompt,
        tokens: list[int],
        prompt_length: int,
        sampling: SamplingParams,
        seed: int,
        budget: Budget | None,
        parent: TreeBranch | None = None,
    ) -> None:
        super().__init__(
            scheduler.runtime, branch_id, prompt, tokens, prompt_length, sampling, seed, budget, parent
        )
        self.decoder = decoder
        self._scheduler = scheduler

    @classmethod
    async def grow(
        cls,
        decoder: Decoder,
        scheduler: Scheduler,
        prompt: Prompt,
        tokens: list[int],
        prompt_length: int,
        sampling: SamplingParams,
        seed: int,
        budget: Budget | None,
        embeds: Mapping[int, Tensor] | None = None,
    ) -> TreeBranch:
        """Returns a branch that holds the tokens; tokens that were not resident are computed.

        Args:
            embeds: [hidden], by the positions of id -1.
        """
        runtime = scheduler.runtime
        if budget is not None:
            instance("budget", budget, Budget)
        runtime.check_prompt(tokens)
        if budget is not None:
            budget.start()

        shared = tokens[: min(embeds)] if embeds else tokens

        def make(share_limit: int | None) -> TreeBranch:
            branch_id, resident = runtime.place(shared, len(tokens), share_limit)
            branch = cls(
                decoder, scheduler, branch_id, prompt, list(tokens), prompt_length, sampling, seed, budget
            )
            branch.embeds = dict(embeds or {})
            branch.kv_length = branch.cached_tokens = resident
            return branch

        needs_logits = runtime.engine.has_lm_head
        return await scheduler.submit(
            RootRequest(shared, len(tokens), runtime.tree.page_size, make, needs_logits=needs_logits)
        )

    # -- model work

    async def step(self, **overrides: Any) -> Step:
        """Generates up to the next step boundary.

        Args:
            overrides: fields of `SamplingParams` for this step only; `seed` replaces the branch's own. A
                `constraint` begins and ends with the step; a branch that has one takes no other.

        To make a model that ends too early continue, take its end-of-sequence token back with
        `truncate(branch.length - 1)` and force other text in its place with `extend`. The same works for an
        end-of-think token among `stop_token_ids`. `suppress_token_ids` keeps such tokens from being drawn at
        all.

        On a finished branch it returns an empty step with the finish reason and does no work. A cancelled or
        failed step leaves the tokens generated so far in the branch.

        Raises:
            OutOfPagesError: no page is left, and no other waiting branch can continue either.
            StaleKVError: the model's weights changed before or during the step. The calls below raise it too.
        """
        request = await step_request(self, overrides)
        if request is None:
            return Step("", (), (), (), str(self.finish_reason))
        return await self._scheduler.submit(request)

    def stream(self, **overrides: Any) -> AsyncGenerator[StepPiece, None]:
        """Generates like `step`, with its overrides and errors, and yields tokens as they come.

        Use it as `async for piece in branch.stream()`. The pieces add up to the step, bit for bit; the last
        one holds the reason. Nothing happens before the first piece is requested, and a slow consumer delays
        nobody. To stop early, close the generator (`contextlib.aclosing`); closing or cancelling it leaves
        the branch as a cancelled `step` does.
        """
        return step_pieces(self._scheduler, self, lambda: step_request(self, overrides))

    async def extend(self, tokens: str | Sequence[int]) -> Tensor:
        """Appends forced text or token ids and returns the log-probability of each token, float32 [n], nats.

        A finished branch is open again afterwards. Forced tokens cost no budget. A call that fails, or is
        cancelled before all tokens are in, changes nothing.
        """
        return torch.tensor((await self.extend_listing(tokens, 0))[0], dtype=torch.float32)

    async def extend_listing(
        self, tokens: str | Sequence[int], top_logprobs: int
    ) -> tuple[list[float], list[TopLogprobs]]:
        """Like `extend`; also lists the most probable tokens per position, as in `Step.top_logprobs`."""
        self.check_ready()
        self.require_lm_head("extend")
        forced = self.forced(tokens)
        if self.logits is None:
            self.drop_logits()
        request = ExtendRequest(self, forced, top_logprobs)
        return (await self._scheduler.submit(request) if forced else []), request.tops

    async def read(self, tokens: str | Sequence[int], rows: Sequence[int]) -> Tensor:
        """Appends forced text or token ids and returns the model's last hidden states at some of them.

        Returns the states after the final norm, float32 [len(rows), hidden], on the CPU. Nothing is
        multiplied with the vocabulary, so models without an LM head work. The log-probabilities of the tokens
        stay unknown (NaN). Afterwards the branch continues as after `extend`; if the next token's
        distribution is needed, its last token is fed again. A finished branch is open again. Costs no tokens
        of the budget. A call that fails, or is cancelled before all tokens are in, changes nothing.

        Args:
            rows: indices into `tokens`, ascending.
        """
        self.check_ready()
        forced = self.forced(tokens)
        indices = checked_rows(rows, len(forced))
        if not forced:
            return torch.empty((0, self.runtime.engine.config.hidden_size))
        return await self._scheduler.submit(ReadRequest(self, forced, indices))

    async def extend_embeds(self, embeds: Tensor) -> Tensor:
        """Appends input embeddings (soft tokens) and returns the model's last hidden states at them.

        Returns the states after the final norm, float32 [n, hidden], on the CPU. Embeddings take positions
        and KV like tokens, but have no text: id -1 in `tokens`; texts, the repetition penalty and sharing
        with later prompts leave them out. Otherwise like `read`. Their source is up to the caller, for
        example the last hidden state itself (Coconut, arXiv 2412.06769).

        Args:
            embeds: float [n, hidden], in place of what the model's embedding table returns for tokens.

        Raises:
            TypeError, ValueError: `embeds` is of another kind or shape, holds NaN or inf, or exceeds the
                model's positions.
        """
        self.check_ready()
        check_embeds(embeds, self.runtime.engine.config.hidden_size)
        self.check_positions(len(embeds))
        self.check_constraint([-1] * len(embeds))
        if not len(embeds):
            return torch.empty((0, self.runtime.engine.config.hidden_size))
        kept = embeds.detach().to(self.runtime.engine.device, copy=True)
        return await self._scheduler.submit(EmbedsRequest(self, kept))

    async def logprobs_of(self, tokens: str | Sequence[int]) -> Tensor:
        """Returns the log-probability of each token of a continuation that is not kept: float32 [n], nats.

        Equivalent to extending and releasing a copy: the branch, its random state and its pages stay as
        before. If the last token of a finished branch ends the sequence, the continuation comes after that
        token; to cut it off, use `copy(at=length - 1)`.
        """
        self.check_computed()
        copy = self.copy()
        try:
            return await copy.extend(tokens)
        finally:
            if not copy.released:
                copy.release()

    async def next_logprobs(self, token_ids: Sequence[int] | None = None) -> Tensor:
        """Returns the log-probabilities of the next token: float32 [vocab], or of `token_ids` in that order.

        They are in nats, of the model's own distribution.
        """
        self.check_idle()
        self.require_lm_head("next_logprobs")
        self.runtime.follow_weights()
        self.check_computed()
        if self.logits is None:
            self.drop_logits()
        if self.logits is None:
            await self._scheduler.submit(AdvanceRequest(self))
            self.check_computed()  # again
        assert self.logits is not None  # `advance` returned
        logprobs = self.logits.log_softmax(-1).cpu()
        if token_ids is None:
            return logprobs
        ids = torch.tensor(self.runtime.reader.ids(token_ids), dtype=torch.long)
        return logprobs[ids]

    async def layer_states(self, layers: Sequence[int] | Literal["all"] = "all") -> Tensor:
        """Returns the hidden states of the branch's last token at chosen layers.

        Returns float32 [len(layers), hidden] on the CPU. A step's last token goes through the model here, and
        the next step need not feed it; a token that already went through is fed again. The forward of such a
        token runs layer by layer, and on a GPU without CUDA graphs. Nothing is kept: one forward copies 4 *
        len(layers) * hidden bytes per branch that asks.

        Args:
            layers: numbers as in `hidden_states` of transformers: 0 is the embeddings as input to the first
                layer, i the output of layer i - 1, and the number of layers is the last hidden states, after
                the final norm. "all": from 0 on.

        Raises:
            TypeError, ValueError: an entry is no number, or out of range.
            UnsupportedModelError: the model's layers are not in a list.
        """
        self.check_idle()
        self.require_lm_head("layer_states")
        chosen = checked_layers(layers, self.runtime.engine.num_layers)
        self.check_computed()
        self.drop_logits()
        return await self._scheduler.submit(LayersRequest(self, chosen))

    async def replay(self, step: Step) -> None:
        """Appends a recorded step instead of generating one: tokens, log-probabilities, entropies, reason.

        Afterwards the branch, including its KV, is as after the step itself, without a product with the
        vocabulary. The step's tokens count in the budget. A call that fails, or is cancelled before all
        tokens are in, changes nothing.

        Raises:
            TypeError, ValueError: `step` is no Step, its lists differ in length or do not fit the model, or
                the branch is finished.
        """
        self.check_ready()
        self.require_lm_head("replay")
        check_recorded(step)
        self.check_open()
        if self.forced(step.tokens):
            await self._scheduler.submit(ReplayRequest(self, step))
        elif step.reason in FINAL_REASONS:
            self.finish_reason = step.reason

    async def recompute(self) -> None:
        """Feeds all of the branch's tokens again if its KV was dropped because the model's weights changed.

        Tokens, embeddings, log-probabilities, steps and scores stay as they are; evicted pages are present
        again. Prefixes that other branches have recomputed are shared. The branch gets a new `id`. Does
        nothing on a branch that is not stale. A call that fails or is cancelled changes nothing.

        Raises:
            OutOfPagesError: other branches hold the pages that it needs.
        """
        self.check_idle()
        self.runtime.follow_weights()
        if not self.stale:
            return
        self.busy = True
        try:
            fresh = await TreeBranch.grow(
                self.decoder,
                self._scheduler,
                self.prompt,
                list(self.tokens),
                self.prompt_length,
                self.sampling,
                self.seed,
                self.budget,
                self.embeds,
            )
        finally:
            self.busy = False
        if self.released:
            fresh.release()
            self.check_live()
        self.take_kv(fresh)

    # -- tree work, immediate

    def snapshot(self) -> BranchState:
        """Returns the branch, without its KV, as data that can be saved, for `TreeDecoder.restore`.

        Raises:
            ValueError: embeddings were appended to it, which are not kept.
        """
        self.check_idle()
        if self.embeds:
            raise ValueError(
                f"branch {self.id}: got one with {len(self.embeds)} embeddings, expected none, as a snapshot "
                "does not keep them"
            )
        return self.state()

    def fork(self, n: int = 1, at: int | None = None, seeds: Sequence[int] | None = None) -> list[TreeBranch]:
        """Makes `n` children that share this branch's KV; at most one page per child is copied, later.

        Args:
            at: position in `tokens`, 1 <= at <= length: children hold `tokens[:at]`, with the steps and
                scores that end there or earlier. Default: all. Children of a finished branch that is not
                shortened are finished too.
            seeds: one per child. Default: derived from this branch's seed, its number of `fork` calls and the
                index.
        """
        self.check_live()
        at = self.position("at", at)
        children = self._children(at, self.child_seeds(n, seeds), self.sampling)
        self.fork_count += 1
        self.lineage = self.lineage.forked(at)
        for child in children:
            child.lineage = self.lineage.cut(at)
        return children

    def copy(self, at: int | None = None) -> TreeBranch:
        """Returns a branch of `tokens[:at]` (default: all) with this one's seed, at its place in the tree.

        Use it for questions about a branch that are not part of its search; it has no constraint. Copies
        leave the branch unchanged, while a `fork` affects the seeds of later forks and what sparse attention
        reads.
        """
        self.check_live()
        own = self.sampling
        free = own if own.constraint is None else replace(own, constraint=None)
        (child,) = self._children(self.position("at", at), [self.seed], free)
        return child

    def _children(self, at: int, seeds: Sequence[int], sampling: SamplingParams) -> list[TreeBranch]:
        """Returns one child per seed, each at this branch's place in the tree; leaves this branch alone."""
        kv_length = self.kv_after_cut(at)
        ids = self.runtime.tree.fork(self.id, len(seeds), at=kv_length)
        children = []
        for child_id, seed in zip(ids, seeds, strict=True):
            child = TreeBranch(
                self.decoder,
                self._scheduler,
                child_id,
                self.prompt,
                self.tokens[:at],
                min(self.prompt_length, at),
                sampling,
                seed,
                self.budget,
                parent=self,
            )
            child.lineage = self.lineage.cut(at)
            child.inherit(self, at, kv_length)
            children.append(child)
        return children

    def truncate(self, length: int) -> None:
        """Rolls back to `tokens[:length]`, 1 <= length <= the branch's length; frees pages at once.

        Steps and scores that end beyond `length` are dropped too; a branch that loses tokens is no longer
        finished. In int8 pages the last page keeps a scale that accounts for the tokens cut from it: later
        tokens may round differently from those of a branch that never had them.
        """
        self.check_idle()
        length = self.position("length", length)
        kv_length = self.kv_after_cut(length)
        self.truncate_kv(kv_length)
        self.lineage = self.lineage.cut(length)
        self.inherit(self, length, kv_length)
        del self.tokens[length:]
        self.prompt_length = min(self.prompt_length, length)

    def evict(self, keep: int, *, sink: int = 1, recent: int = 4) -> int:
        """Runs `TreeDecoder.evict` on this branch alone."""
        self.check_live()
        return evict_columns(self.runtime, [self], keep, sink=sink, recent=recent)

    def compress(self, keep: int, *, sink: int = 1, recent: int = 4, observe: int = 32) -> int:
        """Keeps `keep` pages of the branch's KV, filled with the tokens that matter in each layer.

        Each layer keeps the same number of tokens, but its own: the tokens that the branch's last tokens
        attend to most in that layer, summed over heads. The kept tokens are moved together, which frees the
        other pages. Tokens, text and positions stay as they are, but no fork, pin or truncation can end in
        the compressed part, and no prompt shares it. A branch forked later shares it. `evict` instead drops
        whole pages, the same in all layers, by the attention they drew so far.

        Only the branch's own pages change, so no other branch does: compress a prompt before forking it. Runs
        a forward of `observe` tokens, which temporarily takes pages for them.

        Sagar Srinivas et al., "Scaling Test-Time Inference with Policy-Optimized, Dynamic Retrieval-Augmented
        Generation via KV Caching and Decoding", arXiv 2504.01281 (CRITIC). Departures: the importance of a
        token is the attention of the last queries (SnapKV, arXiv 2404.14469), and nothing else that the paper
        weighs; all heads of a layer keep the same tokens; sink and recent pages stay whole.

        Args:
            keep: pages to keep, at least 1; includes shared, sink and recent pages.
            sink: first pages that stay as they are.
            recent: last pages that stay as they are, at least 2, so that a last token can be fed again.
            observe: last tokens whose queries decide what matters, at least 1; fewer if earlier tokens were
                compressed.

        Returns:
            The number of pages freed; 0 if fewer than two pages may be changed.

        Raises:
            TypeError, ValueError: an argument is out of range, or the decoder keeps page summaries or runs on
                a GPU.
            UnsupportedModelError: the model has sliding windows, chunks or ALiBi.
            OutOfPagesError: there are no pages for the `observe` tokens.
            RuntimeError: the branch is waiting for the engine.
        """
        self.check_idle()
        self.runtime.follow_weights()
        self.check_computed()
        keep = integer("keep", keep, 1)
        check_rule(sink, recent, observe)
        refuse_compression(self.runtime)
        meter = self._scheduler.forwards.meter
        return compress_path(self.runtime, meter, self, keep, sink=sink, recent=recent, observe=observe)

    def release(self) -> None:
        """Gives up the branch's KV and frees pages that no other branch holds. A waiting step fails."""
        self.check_live()
        self.release_kv()
