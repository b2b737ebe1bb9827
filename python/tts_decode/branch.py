"""Branch handles: what a search algorithm holds of one path of the tree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tts_decode.budget import Budget
from tts_decode.checks import check_embeds, check_recorded, checked_position, checked_rows
from tts_decode.errors import PromptTooLong
from tts_decode.lineage import Lineage
from tts_decode.path import Path
from tts_decode.prompts import Prompt
from tts_decode.sampling import SamplingParams
from tts_decode.state import BranchState
from tts_decode.steps import FINAL_REASONS, Step
from tts_decode.text import continuation

if TYPE_CHECKING:
    from tts_decode.decoder import TreeDecoder


class Branch(Path):
    """One path from a prompt to a leaf; made by `TreeDecoder.root` and `Branch.fork` only.

    What may be read of it says `Path`, beside `decoder`, its TreeDecoder.
    """

    parent: Branch | None

    def __init__(
        self,
        decoder: TreeDecoder,
        branch_id: int,
        prompt: Prompt,
        tokens: list[int],
        prompt_length: int,
        sampling: SamplingParams,
        seed: int,
        budget: Budget | None,
        parent: Branch | None = None,
    ) -> None:
        super().__init__(branch_id, prompt, tokens, prompt_length, sampling, seed, budget, parent)
        self.decoder = decoder
        self._lineage = Lineage.of_root()
        self._kv_length = 0  # tokens in the KV tree: at most all of them, but for forced ones on their way in
        self._embeds: dict[int, Tensor] = {}  # [hidden], by the positions of id -1
        self._logits: Tensor | None = (
            None  # float32 [vocab] after the last token; None while its KV is missing
        )
        # float32 [columns]: attention drawn by each page of the KV, in tokens; what lies behind its last page
        # means nothing. Stays empty where the decoder does not track it.
        self._mass: npt.NDArray[np.float32] = np.zeros(0, np.float32)
        decoder._branches.add(self)

    # -- what it holds

    @property
    def text(self) -> str:
        """Text after the prompt, special tokens left out: the texts of its steps and of what was forced
        between them, joined. A character whose last bytes are missing is not shown yet."""
        return self.text_from(self.prompt_length)

    @property
    def full_text(self) -> str:
        """Text of prompt and continuation, special tokens included; without an incomplete last character."""
        return continuation(self.decoder.tokenizer, self.tokens, 0, special=True)

    def text_from(self, position: int) -> str:
        """Text that `tokens[position:]` add, special tokens left out: the characters that end in them."""
        return continuation(self.decoder.tokenizer, self.tokens, position)

    # -- model work

    async def step(self, **overrides: Any) -> Step:
        """Generates up to the next step boundary.

        Args:
            overrides: fields of `SamplingParams` for this step only; `seed` in place of the branch's own.

        A model that ends too early is made to go on by taking its end-of-sequence token back,
        `truncate(branch.length - 1)`, and forcing other text in its place by `extend`; so is an end-of-think
        token among `stop_token_ids`. `suppress_token_ids` keeps such tokens from being drawn at all.

        On a finished branch it returns an empty step with the finish reason and does no work. A cancelled or
        failed step leaves the tokens generated so far in the branch.

        Raises:
            OutOfPages: no page is left and no other branch waiting could go on either.
            StaleKV: the model's weights changed, before the step or in it; so too of the calls below.
        """
        self._check_idle()
        self.decoder._check_lm_head("step")
        params = replace(self.sampling, **overrides) if overrides else self.sampling
        if self.finish_reason is not None:
            return Step("", (), (), (), self.finish_reason)
        self._check_computed()
        params.check_vocabulary(self.decoder.vocab_size)
        self._want_logits()
        return await self.decoder._scheduler.step(self, params, overrides.get("seed", self.seed))

    async def extend(self, tokens: str | Sequence[int]) -> Tensor:
        """Appends forced text or token ids and returns the log-probability of each token, float32 [n], nats.

        A finished branch is open again afterwards. Forced tokens cost no budget; a call that fails, or is
        cancelled before all tokens are in, changes nothing.
        """
        self._check_ready()
        self.decoder._check_lm_head("extend")
        forced = self._forced(tokens)
        self._want_logits()
        logprobs = await self.decoder._scheduler.extend(self, forced) if forced else []
        return torch.tensor(logprobs, dtype=torch.float32)

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
        self._check_ready()
        forced = self._forced(tokens)
        indices = checked_rows(rows, len(forced))
        if not forced:
            return torch.empty((0, self.decoder.hidden_size))
        return await self.decoder._scheduler.read(self, forced, indices)

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
        self._check_ready()
        check_embeds(embeds, self.decoder.hidden_size)
        self._check_room(len(embeds))
        if not len(embeds):
            return torch.empty((0, self.decoder.hidden_size))
        kept = embeds.detach().to(self.decoder.model.device, copy=True)
        return await self.decoder._scheduler.extend_embeds(self, kept)

    async def logprobs_of(self, tokens: str | Sequence[int]) -> Tensor:
        """Log-probability of each token of a continuation that is not kept: float32 [n], nats.

        As by a copy that is extended and released: the branch, its random state and its pages are as before.
        Of a finished branch whose last token ends the sequence, the continuation comes behind that token; to
        cut it off, ask a `copy(at=length - 1)`.
        """
        self._check_computed()
        copy = self.copy()
        try:
            return await copy.extend(tokens)
        finally:
            if not copy.released:
                copy.release()

    async def next_logprobs(self, token_ids: Sequence[int] | None = None) -> Tensor:
        """Log-probabilities of the next token (nats, the model's own distribution): float32 [vocab], or those
        of `token_ids` in that order."""
        self._check_idle()
        self.decoder._check_lm_head("next_logprobs")
        self.decoder._follow_weights()
        self._check_computed()
        self._want_logits()
        if self._logits is None:
            await self.decoder._scheduler.advance(self)
            self._check_computed()  # still
        assert self._logits is not None  # `advance` returned
        logprobs = self._logits.log_softmax(-1).cpu()
        if token_ids is None:
            return logprobs
        ids = torch.tensor(self.decoder._reader.ids(token_ids), dtype=torch.long)
        return logprobs[ids]

    async def replay(self, step: Step) -> None:
        """Takes over a recorded step instead of generating one: tokens, log-probabilities, entropies, reason.

        The branch is then as after the step itself, its KV too, without a product with the vocabulary. The
        step's tokens count in the budget. A call that fails, or is cancelled before all tokens are in,
        changes nothing.

        Raises:
            TypeError, ValueError: `step` is no Step, its lists differ in length or do not fit the model, or
                the branch is finished.
        """
        self._check_ready()
        self.decoder._check_lm_head("replay")
        check_recorded(step)
        self._check_open()
        if self._forced(step.tokens):
            await self.decoder._scheduler.replay(self, step)
        elif step.reason in FINAL_REASONS:
            self.finish_reason = step.reason

    async def recompute(self) -> None:
        """Feeds all of the branch's tokens again where its KV went because the model's weights changed.

        Tokens, embeddings, log-probabilities, steps and scores stay as they are; pages that were evicted are
        there again. What other branches have recomputed of its prefix is shared. The branch gets a new `id`.
        Does nothing on a branch that is not stale; a call that fails or is cancelled changes nothing.

        Raises:
            OutOfPages: other branches hold the pages that it needs.
        """
        self._check_idle()
        self.decoder._follow_weights()
        if not self.stale:
            return
        self._busy = True
        try:
            fresh = await self.decoder._make_branch(
                self.prompt,
                list(self.tokens),
                self.prompt_length,
                self.sampling,
                self.seed,
                self.budget,
                self._embeds,
            )
        finally:
            self._busy = False
        if self.released:
            fresh.release()
            self._check()
        self._take_kv(fresh)

    # -- tree work, immediate

    def snapshot(self) -> BranchState:
        """What the branch is, as data that can be saved, for `TreeDecoder.restore`; its KV is left out.

        Raises:
            ValueError: embeddings were appended to it, which are not kept.
        """
        self._check_idle()
        if self._embeds:
            raise ValueError(
                f"branch {self.id} holds {len(self._embeds)} embeddings, which a snapshot does not keep"
            )
        steps = zip(self.steps, self._step_ends, strict=True)
        return BranchState(
            prompt=self.prompt,
            tokens=tuple(self.tokens),
            prompt_length=self.prompt_length,
            logprobs=tuple(self.logprobs),
            entropies=tuple(self.entropies),
            steps=tuple((end - len(step.tokens), end, step.reason) for step, end in steps),
            scores=tuple(self.scores),
            finish_reason=self.finish_reason,
            seed=self.seed,
            forks=self._forks,
            fork_positions=tuple(fork.at for fork in self._lineage.forks),
            sampling=self.sampling,
        )

    def fork(self, n: int = 1, at: int | None = None, seeds: Sequence[int] | None = None) -> list[Branch]:
        """Makes `n` children that share this branch's KV; at most one page a child is copied, later.

        Args:
            at: position in `tokens`, 1 <= at <= length: children hold `tokens[:at]`, with the steps and
                scores that end there or earlier. Default: all. Children of an unshortened finished branch are
                finished too.
            seeds: one a child. Default: derived from this branch's seed, its count of `fork` calls and the
                index.
        """
        self._check()
        at = self._position("at", at, 1)
        children = self._children(at, self._seeds(n, seeds))
        self._forks += 1
        self._lineage = self._lineage.forked(at)
        for child in children:
            child._lineage = self._lineage.cut(at)
        return children

    def copy(self, at: int | None = None) -> Branch:
        """A branch of `tokens[:at]` (default: all) with this one's seed, at its place in the tree.

        For questions about a branch that are no part of its search. The branch does not know of its copies; a
        `fork` counts for the seeds of later forks and for what sparse attention reads.
        """
        self._check()
        (child,) = self._children(self._position("at", at, 1), [self.seed])
        return child

    def _children(self, at: int, seeds: Sequence[int]) -> list[Branch]:
        """One child a seed, each in this branch's place in the tree; this branch does not know of them."""
        kv_length = self._kv_after_cut(at)
        ids = self.decoder._tree.fork(self.id, len(seeds), at=kv_length)
        children = []
        for child_id, seed in zip(ids, seeds, strict=True):
            child = Branch(
                self.decoder,
                child_id,
                self.prompt,
                self.tokens[:at],
                min(self.prompt_length, at),
                self.sampling,
                seed,
                self.budget,
                parent=self,
            )
            child._lineage = self._lineage.cut(at)
            child._inherit(self, at, kv_length)
            children.append(child)
        return children

    def truncate(self, length: int) -> None:
        """Rolls back to `tokens[:length]`, 1 <= length <= the branch's length; pages return at once.

        Steps and scores that end beyond `length` go too; a branch that loses tokens is no longer finished.
        In int8 pages the last page keeps the scale that counts the tokens cut from it: what follows may
        differ in rounding from a branch that never had them.
        """
        self._check_idle()
        length = self._position("length", length, 1)
        kv_length = self._kv_after_cut(length)
        self.decoder._tree.truncate(self.id, kv_length)
        self._lineage = self._lineage.cut(length)
        self._inherit(self, length, kv_length)
        del self.tokens[length:]
        self.prompt_length = min(self.prompt_length, length)

    def evict(self, keep: int, *, sink: int = 1, recent: int = 4) -> int:
        """`TreeDecoder.evict` of this branch alone."""
        return self.decoder.evict([self], keep, sink=sink, recent=recent)

    def release(self) -> None:
        """Gives up the branch's KV; pages that no other branch holds return at once. A waiting step fails."""
        self._check()
        self.released = True
        self._logits = None
        self.decoder._tree.release(self.id)

    def __del__(self) -> None:
        if not getattr(self, "released", True):
            self.decoder._tree.release(self.id)

    # -- helpers

    def _check_ready(self) -> None:
        self._check_idle()
        self._check_computed()

    def _lose_kv(self) -> None:
        """The model's weights changed: nothing that was computed with the old ones is to be used."""
        if not self.released and (self._kv_length or self._logits is not None):
            self.stale = True
            self._kv_length, self._logits = 0, None
            self.decoder._tree.truncate(self.id, 0)

    def _take_kv(self, other: Branch) -> None:
        """Takes over the KV of a branch with the same tokens, which is then released."""
        self.decoder._tree.release(self.id)
        self.id, self._kv_length, self._logits = other.id, other._kv_length, other._logits
        self._mass, self.stale = other._mass, other.stale
        other.released = True

    def _restore(self, state: BranchState) -> None:
        """Takes over what `state` says beyond what the branch was made from."""
        self.logprobs, self.entropies = list(state.logprobs), list(state.entropies)
        self.scores = list(state.scores)
        self.finish_reason = state.finish_reason
        self._forks = state.forks
        self._lineage = Lineage.of_root(state.fork_positions)
        for begin, end, reason in state.steps:
            span = slice(begin - state.prompt_length, end - state.prompt_length)
            self.steps.append(
                Step(
                    text=continuation(self.decoder.tokenizer, self.tokens[:end], begin),
                    tokens=state.tokens[begin:end],
                    logprobs=state.logprobs[span],
                    entropies=state.entropies[span],
                    reason=reason,
                )
            )
            self._step_ends.append(end)

    def _inherit(self, other: Branch, length: int, kv_length: int) -> None:
        """Takes over what `other` knows about its first `length` tokens."""
        whole = length == len(other.tokens)
        self._know(other, length)
        self._embeds = {at: embeds for at, embeds in other._embeds.items() if at < length}
        self._logits = other._logits if whole else None
        self._kv_length = kv_length
        self._mass = other._masses()[: self._columns(kv_length)]

    def _columns(self, kv_length: int) -> int:
        return -(-kv_length // self.decoder._tree.page_size)

    def _masses(self) -> npt.NDArray[np.float32]:
        """float32 [columns], a copy: attention drawn by each page of the KV that is there now."""
        masses = np.zeros(self._columns(self._kv_length), np.float32)
        known = self._mass[: len(masses)]
        masses[: len(known)] = known
        return masses

    def _add_mass(self, mass: npt.NDArray[np.float32]) -> None:
        """Before `_kv_length` moves on. mass: float32 [P] of the tokens fed, their own pages included."""
        known = self._masses()
        self._mass = mass.copy()
        self._mass[: len(known)] += known

    def _kv_after_cut(self, length: int) -> int:
        """KV to keep under `tokens[:length]`: the last token of a cut is left out, to be fed again."""
        return min(self._kv_length, length if length == len(self.tokens) else length - 1)

    def _drop_logits(self) -> None:
        """Has the last token fed again before the next one is drawn."""
        self._logits = None
        if self._kv_length == len(self.tokens):
            self._kv_length -= 1
            self.decoder._tree.truncate(self.id, self._kv_length)

    def _want_logits(self) -> None:
        """Where the last token was fed without logits, has it fed again."""
        if self._logits is None:
            self._drop_logits()

    def _forced(self, tokens: str | Sequence[int]) -> list[int]:
        """Ids of text or ids to append; PromptTooLong where they exceed the model's positions."""
        forced = self.decoder._reader.ids(tokens)
        self._check_room(len(forced))
        return forced

    def _check_room(self, count: int) -> None:
        limit = self.decoder.max_positions
        if limit is not None and len(self.tokens) + count > limit:
            raise PromptTooLong(
                f"tokens: {count} more after {len(self.tokens)} exceed the model's {limit} positions"
            )

    def _position(self, name: str, value: int | None, low: int) -> int:
        if value is None:
            return len(self.tokens)
        return checked_position(name, value, low, len(self.tokens))
