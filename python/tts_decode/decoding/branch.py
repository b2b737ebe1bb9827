"""Branch handles: what a search algorithm holds of one path of the tree."""

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
    """One path from a prompt to a leaf; made by `TreeDecoder.root` and `fork` only.

    See `Path` for the attributes to read. `decoder` is the owning TreeDecoder.
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
        """A branch that holds the tokens, computed where they were not resident.

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
            overrides: fields of `SamplingParams` for this step only; `seed` in place of the branch's own. A
                `constraint` begins and ends with the step; a branch that has one takes no other.

        A model that ends too early is made to go on by taking its end-of-sequence token back,
        `truncate(branch.length - 1)`, and forcing other text in its place by `extend`; so is an end-of-think
        token among `stop_token_ids`. `suppress_token_ids` keeps such tokens from being drawn at all.

        On a finished branch it returns an empty step with the finish reason and does no work. A cancelled or
        failed step leaves the tokens generated so far in the branch.

        Raises:
            OutOfPagesError: no page is left and no other branch waiting could go on either.
            StaleKVError: the model's weights changed, before the step or in it; so too of the calls below.
        """
        request = await step_request(self, overrides)
        if request is None:
            return Step("", (), (), (), str(self.finish_reason))
        return await self._scheduler.submit(request)

    def stream(self, **overrides: Any) -> AsyncGenerator[StepPiece, None]:
        """Generates as `step` does, with its overrides and errors, and gives the tokens as they come:
        `async for piece in branch.stream()`.

        The pieces add up to the step, bit for bit; the last one says the reason. Nothing happens before the
        first one is asked for, and a slow consumer holds up no one. Whoever stops early closes the generator
        (`contextlib.aclosing`) or is cancelled, which leaves the branch as a cancelled `step` does.
        """
        return step_pieces(self._scheduler, self, lambda: step_request(self, overrides))

    async def extend(self, tokens: str | Sequence[int]) -> Tensor:
        """Appends forced text or token ids and returns the log-probability of each token, float32 [n], nats.

        A finished branch is open again afterwards. Forced tokens cost no budget; a call that fails, or is
        cancelled before all tokens are in, changes nothing.
        """
        return torch.tensor((await self.extend_listing(tokens, 0))[0], dtype=torch.float32)

    async def extend_listing(
        self, tokens: str | Sequence[int], top_logprobs: int
    ) -> tuple[list[float], list[TopLogprobs]]:
        """As `extend`, with the `top_logprobs` likeliest tokens in each place, as of `Step.top_logprobs`."""
        self.check_ready()
        self.require_lm_head("extend")
        forced = self.forced(tokens)
        if self.logits is None:
            self.drop_logits()
        request = ExtendRequest(self, forced, top_logprobs)
        return (await self._scheduler.submit(request) if forced else []), request.tops

    async def read(self, tokens: str | Sequence[int], rows: Sequence[int]) -> Tensor:
        """Appends forced text or token ids and returns the model's last hidden states (after its final norm)
        at some of them: float32 [len(rows), hidden], on the CPU.

        Nothing is multiplied with the vocabulary, and models without LM head serve. The log-probabilities of
        the tokens stay unknown (NaN). Afterwards the branch goes on as after `extend`; where the next token's
        distribution is wanted, its last token is fed again. A finished branch is open again. Costs no
        budget's tokens; a call that fails, or is cancelled before all tokens are in, changes nothing.

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
        """Appends input embeddings (soft tokens) and returns the model's last hidden states (after its final
        norm) at them: float32 [n, hidden], on the CPU.

        They take positions and KV as tokens do, but have no text: id -1 in `tokens`, left out of texts, of
        the repetition penalty and of what later prompts can share. Otherwise as `read`. Where they come from
        is the caller's matter, such as the last hidden state itself (Coconut, arXiv 2412.06769).

        Args:
            embeds: float [n, hidden], what the model's embedding table would give for tokens.

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
        """Log-probability of each token of a continuation that is not kept: float32 [n], nats.

        As by a copy that is extended and released: the branch, its random state and its pages are as before.
        Of a finished branch whose last token ends the sequence, the continuation comes behind that token; to
        cut it off, ask a `copy(at=length - 1)`.
        """
        self.check_computed()
        copy = self.copy()
        try:
            return await copy.extend(tokens)
        finally:
            if not copy.released:
                copy.release()

    async def next_logprobs(self, token_ids: Sequence[int] | None = None) -> Tensor:
        """Log-probabilities of the next token (nats, the model's own distribution): float32 [vocab], or those
        of `token_ids` in that order."""
        self.check_idle()
        self.require_lm_head("next_logprobs")
        self.runtime.follow_weights()
        self.check_computed()
        if self.logits is None:
            self.drop_logits()
        if self.logits is None:
            await self._scheduler.submit(AdvanceRequest(self))
            self.check_computed()  # still
        assert self.logits is not None  # `advance` returned
        logprobs = self.logits.log_softmax(-1).cpu()
        if token_ids is None:
            return logprobs
        ids = torch.tensor(self.runtime.reader.ids(token_ids), dtype=torch.long)
        return logprobs[ids]

    async def layer_states(self, layers: Sequence[int] | Literal["all"] = "all") -> Tensor:
        """Hidden states of the branch's last token at chosen layers: float32 [len(layers), hidden], on the
        CPU.

        The last token of a step goes through the model here, which the next step then need not do; one that
        has been is fed again. The forward of such a token runs layer by layer, and on a GPU without CUDA
        graphs. Nothing is kept: one forward copies 4 * len(layers) * hidden bytes for each branch that asks.

        Args:
            layers: numbers as transformers gives them in `hidden_states`: 0 the embeddings as the first layer
                takes them, i what layer i - 1 gave, and the number of layers the last hidden states, after
                the final norm. "all": from 0 on.

        Raises:
            TypeError, ValueError: a number is none, or out of range.
            UnsupportedModelError: the model's layers are not in a list.
        """
        self.check_idle()
        self.require_lm_head("layer_states")
        chosen = checked_layers(layers, self.runtime.engine.num_layers)
        self.check_computed()
        self.drop_logits()
        return await self._scheduler.submit(LayersRequest(self, chosen))

    async def replay(self, step: Step) -> None:
        """Takes over a recorded step instead of generating one: tokens, log-probabilities, entropies, reason.

        The branch is then as after the step itself, its KV too, without a product with the vocabulary. The
        step's tokens count in the budget. A call that fails, or is cancelled before all tokens are in,
        changes nothing.

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
        """Feeds all of the branch's tokens again where its KV went because the model's weights changed.

        Tokens, embeddings, log-probabilities, steps and scores stay as they are; pages that were evicted are
        there again. What other branches have recomputed of its prefix is shared. The branch gets a new `id`.
        Does nothing on a branch that is not stale; a call that fails or is cancelled changes nothing.

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
        """What the branch is, as data that can be saved, for `TreeDecoder.restore`; its KV is left out.

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
        """Makes `n` children that share this branch's KV; at most one page a child is copied, later.

        Args:
            at: position in `tokens`, 1 <= at <= length: children hold `tokens[:at]`, with the steps and
                scores that end there or earlier. Default: all. Children of an unshortened finished branch are
                finished too.
            seeds: one a child. Default: derived from this branch's seed, its count of `fork` calls and the
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
        """A branch of `tokens[:at]` (default: all) with this one's seed, at its place in the tree.

        For questions about a branch that are no part of its search, so it has no constraint. The branch does
        not know of its copies; a `fork` counts for the seeds of later forks and for what sparse attention
        reads.
        """
        self.check_live()
        own = self.sampling
        free = own if own.constraint is None else replace(own, constraint=None)
        (child,) = self._children(self.position("at", at), [self.seed], free)
        return child

    def _children(self, at: int, seeds: Sequence[int], sampling: SamplingParams) -> list[TreeBranch]:
        """One child a seed, each in this branch's place in the tree; this branch does not know of them."""
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
        """Rolls back to `tokens[:length]`, 1 <= length <= the branch's length; pages return at once.

        Steps and scores that end beyond `length` go too; a branch that loses tokens is no longer finished.
        In int8 pages the last page keeps the scale that counts the tokens cut from it: what follows may
        differ in rounding from a branch that never had them.
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
        """`TreeDecoder.evict` of this branch alone."""
        self.check_live()
        return evict_columns(self.runtime, [self], keep, sink=sink, recent=recent)

    def compress(self, keep: int, *, sink: int = 1, recent: int = 4, observe: int = 32) -> int:
        """Keeps `keep` pages of the branch's KV, in each layer with the tokens that matter there; CRITIC.

        Each layer keeps as many tokens, but its own: those that the branch's last tokens pay the most
        attention to in that layer, summed over heads. What is kept moves together, so that the other pages
        return. Tokens, text and positions stay as they are, but no fork, pin or truncation can end in what
        was compressed, and no prompt shares it. A branch forked later shares it. `evict` drops whole pages,
        the same in all layers, by what they drew so far.

        Only pages of the branch's own are touched, so no other branch changes: compress a prompt before it
        is forked. Runs a forward of `observe` tokens, which takes pages for them meanwhile.

        Sagar Srinivas et al., "Scaling Test-Time Inference with Policy-Optimized, Dynamic Retrieval-Augmented
        Generation via KV Caching and Decoding", arXiv 2504.01281 (CRITIC). Departures: the importance of a
        token is the attention of the last queries (SnapKV, arXiv 2404.14469), whatever else the paper weighs;
        all heads of a layer keep the same tokens; sink and recent pages stay whole.

        Args:
            keep: pages to keep, at least 1; what others share, sink and recent pages count.
            sink: first pages that stay as they are.
            recent: last pages that do, at least 2, so that a last token can be fed again.
            observe: last tokens whose queries say what matters, at least 1; fewer where those before were
                compressed.

        Returns:
            The number of pages that became free: 0 where fewer than two pages may be touched.

        Raises:
            TypeError, ValueError: an argument is out of range, or the decoder keeps page summaries or runs on
                a GPU.
            UnsupportedModelError: the model has sliding windows, chunks or ALiBi.
            OutOfPagesError: there are no pages for the `observe` tokens.
            RuntimeError: the branch waits for the engine.
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
        """Gives up the branch's KV; pages that no other branch holds return at once. A waiting step fails."""
        self.check_live()
        self.release_kv()
