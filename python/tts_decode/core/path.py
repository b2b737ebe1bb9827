"""What every branch knows of its path, whatever engine computes it."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import BranchReleasedError, StaleKVError
from .budget import Budget
from .checks import checked_seeds
from .params import SamplingParams, mix
from .prompts import Prompt
from .step import Step


class Path:
    """The record of one path from a prompt to a leaf. Each decoder's branches add how it grows.

    Read these attributes, never change them (except `scores`, to which strategies append):

    Attributes:
        id: the branch's id, unique within its decoder.
        tokens: prompt and everything after it; -1 where there is no id, as for embeddings.
        prompt: the argument of `root`: text, token ids or chat messages. If a search asks its question again
            in other words, the question.
        prompt_length: tokens of the prompt.
        logprobs, entropies: one entry per token after the prompt, generated or forced; nats, of the model's
            own distribution. NaN where unknown.
        steps: the finished steps. A step that was cancelled or failed has no entry.
        step_ends: len(tokens) at the end of each step.
        scores: one entry per scored step.
        finish_reason: None while the branch can continue.
        parent: the branch it was forked from.
        fork_count: number of `fork` calls so far; the seeds of its next children follow from it.
        busy: whether one of its calls is waiting for the engine.
        stale: whether its KV was dropped because the model's weights changed; see `Branch.recompute`.
        sampling, seed, budget, released
    """

    def __init__(
        self,
        branch_id: int,
        prompt: Prompt,
        tokens: list[int],
        prompt_length: int,
        sampling: SamplingParams,
        seed: int,
        budget: Budget | None,
        parent: Path | None,
    ) -> None:
        self.id = branch_id
        self.prompt = prompt
        self.tokens = tokens
        self.prompt_length = prompt_length
        self.sampling = sampling
        self.seed = seed
        self.budget = budget
        self.parent = parent
        self.logprobs: list[float] = []
        self.entropies: list[float] = []
        self.steps: list[Step] = []
        self.step_ends: list[int] = []
        self.scores: list[float] = []
        self.finish_reason: str | None = None
        self.fork_count = 0
        self.busy = False
        self.released = False
        self.stale = False

    @property
    def length(self) -> int:
        return len(self.tokens)

    @property
    def cum_logprob(self) -> float:
        """Returns the sum of `logprobs` in nats; NaN if one is unknown."""
        return sum(self.logprobs)

    @property
    def finished(self) -> bool:
        return self.finish_reason is not None

    def finish(self, reason: str = "stop") -> None:
        """Declares the branch finished, for example when its answer appeared; `step()` then does nothing."""
        self.check_live()
        self.finish_reason = reason

    def __repr__(self) -> str:
        state = "released" if self.released else self.finish_reason or "open"
        return f"{type(self).__name__}(id={self.id}, length={self.length}, {state})"

    # -- for the decoders

    def record_step(self, step: Step) -> None:
        """Adds a step whose tokens are the last ones of `tokens`."""
        self.steps.append(step)
        self.step_ends.append(len(self.tokens))

    def copy_history(self, other: Path, length: int) -> None:
        """Copies what `other` knows about its first `length` tokens."""
        steps = sum(end <= length for end in other.step_ends)
        generated = max(0, length - other.prompt_length)
        whole = length == len(other.tokens)
        self.logprobs = other.logprobs[:generated]
        self.entropies = other.entropies[:generated]
        self.scores = list(other.scores) if whole else other.scores[:steps]
        self.steps = other.steps[:steps]
        self.step_ends = other.step_ends[:steps]
        self.finish_reason = other.finish_reason if whole else None
        self.stale = other.stale

    def child_seeds(self, n: int, seeds: Sequence[int] | None) -> Sequence[int]:
        """Returns `n` children's seeds: as given, or from the branch's seed, fork count and the index."""
        given = checked_seeds(n, seeds)
        return [mix(self.seed, self.fork_count + 1, i) for i in range(n)] if given is None else given

    def check_live(self) -> None:
        if self.released:
            raise BranchReleasedError(f"branch {self.id} was released: fork before releasing, or keep it")

    def check_idle(self) -> None:
        self.check_live()
        if self.busy:
            raise RuntimeError(
                f"branch {self.id} already waits for the engine: await that call first, or fork"
            )

    def check_computed(self) -> None:
        self.check_live()
        if self.stale:
            raise StaleKVError(
                f"branch {self.id}: the model's weights changed after it was computed; await "
                "branch.recompute(), which feeds its tokens again, or make a new root"
            )

    def check_open(self) -> None:
        if self.finish_reason is not None:
            raise ValueError(f"branch {self.id} is finished ({self.finish_reason}): no step can follow")
