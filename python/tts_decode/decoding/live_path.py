"""A path whose KV is in the tree: what requests and the scheduler know of a branch, and its text."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from tts_kernels.checks import integer, shown

from ..core.budget import Budget
from ..core.constraints.guide import Guide
from ..core.constraints.protocol import Constraint
from ..core.detokenizer import continuation, text_stream
from ..core.lineage import Lineage
from ..core.params import SamplingParams
from ..core.path import Path
from ..core.prompts import Prompt, question_in
from ..core.state import BranchState
from ..core.step import Step
from ..errors import PromptTooLongError
from .runtime import Runtime


class LivePath(Path):
    """A path and what is computed of it.

    Attributes:
        runtime: what it runs on.
        lineage: where its path was forked.
        cached_tokens: tokens of its prompt that were resident when it was made.
        last_use: the forward that last read its KV, as `Forwards` counts them.
        kv_length: tokens in the KV tree: at most all of them, except for forced ones being fed.
        embeds: [hidden], by the positions of id -1.
        logits: float32 [vocab] after the last token; None while its KV is missing.
        guide: its position in its constraint, after some or all of its tokens; None: see `guided`.
        mass: float32 [columns], attention drawn by each page of the KV, in tokens. Entries after the last
            page are meaningless. Empty if the decoder does not track it.
    """

    def __init__(
        self,
        runtime: Runtime,
        branch_id: int,
        prompt: Prompt,
        tokens: list[int],
        prompt_length: int,
        sampling: SamplingParams,
        seed: int,
        budget: Budget | None,
        parent: LivePath | None = None,
    ) -> None:
        super().__init__(branch_id, prompt, tokens, prompt_length, sampling, seed, budget, parent)
        self.runtime = runtime
        self.last_use = 0
        self.lineage = Lineage.of_root()
        self.cached_tokens = 0
        self.kv_length = 0
        self.embeds: dict[int, Tensor] = {}
        self.logits: Tensor | None = None
        self.guide: Guide | None = None
        self.mass: npt.NDArray[np.float32] = np.zeros(0, np.float32)
        runtime.holders.add(self)

    def __del__(self) -> None:
        if not getattr(self, "released", True):
            self.runtime.tree.release(self.id)

    # -- text

    @property
    def tokenizer(self) -> Any:
        """The decoder's tokenizer, which makes its texts."""
        return self.runtime.tokenizer

    @property
    def text(self) -> str:
        """Text after the prompt, without special tokens.

        It joins the texts of its steps and of the forced text between them. A character whose last bytes are
        missing is left out.
        """
        return self.text_from(self.prompt_length)

    @property
    def full_text(self) -> str:
        """Text of prompt and continuation, with special tokens; without an incomplete last character."""
        return continuation(self.runtime.tokenizer, self.tokens, 0, special=True)

    @property
    def question(self) -> str:
        """The user's question: the prompt's text or, in a chat, the user's last message."""
        asked = question_in(self.prompt)
        if asked is None:
            asked = continuation(self.runtime.tokenizer, self.tokens[: self.prompt_length], 0)
        return asked

    def text_from(self, position: int, *, special: bool = False) -> str:
        """Returns the text that `tokens[position:]` add: the characters that end in them.

        Special tokens are left out unless `special` is set.
        """
        return continuation(self.runtime.tokenizer, self.tokens, position, special=special)

    def text_ends(self, position: int) -> list[int]:
        """Returns the characters of `text_from(position)` up to the end of each token from there on."""
        stream = text_stream(self.runtime.tokenizer, self.tokens[:position], special=False)
        return list(accumulate(len(stream.add((token,))) for token in self.tokens[position:]))

    def text_of(self, tokens: Sequence[int]) -> str:
        """Returns the text that these tokens would add, without special tokens."""
        return continuation(self.runtime.tokenizer, [*self.tokens, *tokens], len(self.tokens))

    # -- KV

    def truncate_kv(self, kv_length: int) -> None:
        self.runtime.tree.truncate(self.id, kv_length)
        self.kv_length = kv_length

    def kv_after_cut(self, length: int) -> int:
        """Returns the KV to keep for `tokens[:length]`, without the last token, which is fed again."""
        return min(self.kv_length, length if length == len(self.tokens) else length - 1)

    def drop_logits(self) -> None:
        """Makes the last token be fed again before the next one is drawn."""
        self.logits = None
        if self.kv_length == len(self.tokens):
            self.truncate_kv(self.kv_length - 1)

    def release_kv(self) -> None:
        self.released = True
        self.logits = None
        self.runtime.tree.release(self.id)

    def lose_kv(self) -> None:
        """Drops everything computed with the old weights, after the model's weights changed."""
        if not self.released and (self.kv_length or self.logits is not None):
            self.stale = True
            self.logits = None
            self.truncate_kv(0)

    def take_kv(self, other: LivePath) -> None:
        """Takes over the KV of a path with the same tokens, which is then released."""
        self.runtime.tree.release(self.id)
        self.id, self.kv_length, self.logits = other.id, other.kv_length, other.logits
        self.mass, self.stale = other.mass, other.stale
        other.released = True

    def columns(self, kv_length: int) -> int:
        return -(-kv_length // self.runtime.tree.page_size)

    def masses(self) -> npt.NDArray[np.float32]:
        """Returns a copy of the attention drawn by each page of the present KV, float32 [columns]."""
        masses = np.zeros(self.columns(self.kv_length), np.float32)
        known = self.mass[: len(masses)]
        masses[: len(known)] = known
        return masses

    def add_mass(self, mass: npt.NDArray[np.float32]) -> None:
        """Adds attention before `kv_length` advances. mass: float32 [P], with the fed tokens' own pages."""
        known = self.masses()
        self.mass = mass.copy()
        self.mass[: len(known)] += known

    def move_mass(self, columns: npt.NDArray[np.int64], stay: npt.NDArray[np.int64]) -> None:
        """Distributes what all these columns drew over the pages that stay, as their tokens were mixed."""
        masses = self.masses()
        if len(self.mass):
            masses[stay], masses[np.setdiff1d(columns, stay)] = masses[columns].sum() / len(stay), 0
            self.mass = masses

    # -- what it takes over

    def inherit(self, other: LivePath, length: int, kv_length: int) -> None:
        """Copies what `other` knows about its first `length` tokens."""
        self.copy_history(other, length)
        self.embeds = {at: embeds for at, embeds in other.embeds.items() if at < length}
        self.logits = other.logits if length == len(other.tokens) else None
        self.kv_length = kv_length
        if other.guide is not None and self.sampling.constraint is not None:
            self.guide = other.guide.cut(max(0, min(other.guide.count, length - other.prompt_length)))
        self.mass = other.masses()[: self.columns(kv_length)]

    def restore(self, state: BranchState) -> None:
        """Takes from `state` what the path was not already made from."""
        self.logprobs, self.entropies = list(state.logprobs), list(state.entropies)
        self.scores = list(state.scores)
        self.finish_reason = state.finish_reason
        self.fork_count = state.forks
        self.lineage = Lineage.of_root(state.fork_positions)
        for begin, end, reason in state.steps:
            span = slice(begin - state.prompt_length, end - state.prompt_length)
            self.steps.append(
                Step(
                    text=continuation(self.runtime.tokenizer, self.tokens[:end], begin),
                    tokens=state.tokens[begin:end],
                    logprobs=state.logprobs[span],
                    entropies=state.entropies[span],
                    reason=reason,
                )
            )
            self.step_ends.append(end)

    def state(self) -> BranchState:
        """Returns everything except KV and embeddings."""
        steps = zip(self.steps, self.step_ends, strict=True)
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
            forks=self.fork_count,
            fork_positions=tuple(fork.at for fork in self.lineage.forks),
            sampling=self.sampling,
        )

    # -- arguments

    def check_ready(self) -> None:
        """Raises unless a call that uses the model may begin."""
        if self.released or self.busy or self.stale:
            self.check_idle()
            self.check_computed()

    def forced(self, tokens: str | Sequence[int]) -> list[int]:
        """Returns the ids of text or ids to append.

        Raises:
            PromptTooLongError: they exceed the model's positions.
            ConstraintError: they violate the branch's constraint.
        """
        forced = self.runtime.reader.ids(tokens)
        self.check_positions(len(forced))
        self.check_constraint(forced)
        return forced

    def check_constraint(self, forced: Sequence[int]) -> None:
        """Raises ConstraintError if tokens to append violate the constraint."""
        if (guide := self.guided()) is not None:
            guide.check(forced)

    def step_guide(self, constraint: Constraint | None) -> Guide | None:
        """Returns a step's position in its constraint: the branch's, or one that begins with the step."""
        own = self.sampling.constraint
        if own is None:
            return self.runtime.guide(constraint)
        if constraint != own:
            raise ValueError(
                f"constraint: got {shown(constraint)}, expected the branch's own, which holds from its "
                "prompt on; step without the override, or make the root without a constraint"
            )
        return self.guided()

    def guided(self) -> Guide | None:
        """Returns its position in its constraint after its last token; None without a constraint."""
        guide, self.guide = self.guide, None  # stays None on failure: its position is then unknown
        if guide is None:
            guide = self.runtime.guide(self.sampling.constraint)
        if guide is not None:
            guide.follow(self.tokens[self.prompt_length + guide.count :])
        self.guide = guide
        return guide

    def check_positions(self, count: int) -> None:
        if count > self.runtime.positions_left(len(self.tokens)):
            limit, note = self.runtime.max_positions, self.runtime.engine.limit_note
            raise PromptTooLongError(
                f"tokens: {count} more after {len(self.tokens)} exceed the model's {limit} positions{note}"
            )

    def position(self, name: str, value: int | None) -> int:
        """Returns a position in `tokens`, at least 1; None means after the last token."""
        return len(self.tokens) if value is None else integer(name, value, 1, len(self.tokens))

    def require_lm_head(self, call: str) -> None:
        """Raises TypeError if the model predicts no tokens."""
        if not self.runtime.engine.has_lm_head:
            model = type(self.runtime.engine.model).__name__
            raise TypeError(
                f"{call}: {model} has no language-model head and predicts no tokens: use Branch.read, or "
                "load the model as a causal language model"
            )
