"""What came of a run's searches: their outcomes, their cost, and how both are told."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from ..core.stats import DecoderStats
from ..cost.forward import StepCost
from ..errors import ConstraintError, PromptTooLongError
from ..search import SearchResult
from ..tasks import Task
from .display import mib, short
from .errors import UsageError, named

# Beginnings of a search's errors, in addition to options of its strategy.
_SEARCH_OPTIONS = {"text": "prompt", "pattern": "--regex", "schema": "--json-schema", "grammar": "--grammar"}
_SEARCH_OPTIONS |= {"constraint": "--json-schema, --regex or --grammar"}
CORRECT = 0.99  # least verifier score that counts as solved


@dataclass(frozen=True)
class Outcome:
    """The outcome of a search on one task: a result, or the error that ended it.

    cost: eFLOPs of the search. scores: the verifier's, of every candidate in order; None without a verifier.
    """

    task: Task
    result: SearchResult | None
    error: Exception | None = None
    cost: float = 0.0
    scores: tuple[float, ...] | None = None

    @property
    def solved(self) -> bool | None:
        """Whether the chosen answer is correct, False after an error; None if the task has no verifier."""
        verify = self.task.verify
        if verify is None or self.result is None:
            return None if verify is None else False
        known = {c.text: score for c, score in zip(self.result.candidates, self.scores or (), strict=False)}
        answer = self.result.answer
        return (known[answer] if answer in known else verify(answer)) >= CORRECT

    @property
    def found(self) -> bool | None:
        """Whether any candidate is correct."""
        if self.task.verify is None:
            return None
        return any(score >= CORRECT for score in self.scores or ())


@dataclass(frozen=True)
class RunStats:
    """The total cost of a run's searches, without those taken from saved results.

    searches: how many ran. generated_tokens: of those with a result. peak: the decoder's state at the fullest
    moment observed. peak_bytes: the exact maximum of KV memory. cost: flops and bytes read of all forwards,
    including prompts and reward model.
    """

    searches: int
    seconds: float
    generated_tokens: int
    peak: DecoderStats
    peak_bytes: int
    cost: StepCost
    page_size: int = 16

    @property
    def unshared_bytes(self) -> int:
        """KV memory at the peak if each branch held its own copy of its tokens."""
        return self.peak.logical_tokens * self.peak.page_bytes // self.page_size

    @property
    def tokens_per_second(self) -> float:
        return self.generated_tokens / self.seconds if self.seconds else 0.0

    def to_dict(self) -> dict[str, float]:
        return {
            "searches": self.searches,
            "seconds": self.seconds,
            "generated_tokens": self.generated_tokens,
            "tokens_per_second": self.tokens_per_second,
            "peak_branches": self.peak.branches,
            "peak_logical_tokens": self.peak.logical_tokens,
            "peak_unique_tokens": self.peak.unique_tokens,
            "peak_kv_bytes": self.peak_bytes,
            "unshared_kv_bytes": self.unshared_bytes,
            "flops": self.cost.flops,
            "read_bytes": self.cost.bytes,
            "eflops": self.cost.combined(),
        }


def summary(stats: RunStats) -> str:
    """Returns a run's cost in one line."""
    return (
        f"{stats.generated_tokens:,} tokens in {stats.seconds:.1f} s ({stats.tokens_per_second:.0f} tok/s), "
        f"KV peak {mib(stats.peak_bytes)} MiB ({mib(stats.unshared_bytes)} unshared), "
        f"{short(stats.cost.flops / 1e12)} TFLOP, {short(stats.cost.bytes / 1e9)} GB read"
    )


def describe(outcome: Outcome) -> dict[str, Any]:
    """Returns an outcome without the search's tree, JSON-ready."""
    task, result = outcome.task, outcome.result
    described = {
        "task": task.name,
        "prompt": task.prompt,
        "expected": task.answer,
        "solved": outcome.solved,
        "found": outcome.found,
        "eflops": outcome.cost,
        "error": None if outcome.error is None else told(outcome.error),
    }
    if result is None:
        return described | {"answer": None, "generated_tokens": 0}
    return described | {
        "answer": result.answer,
        "stopped": result.stopped,
        "candidates": len(result.candidates),
        "correct_candidates": None if outcome.scores is None else sum(s >= CORRECT for s in outcome.scores),
        "generated_tokens": result.stats.generated_tokens,
        "seconds": result.stats.seconds,
        "mean_kv_bytes": result.stats.mean_bytes,
        "peak_kv_bytes": result.stats.peak_bytes,
        "ets_kv_tokens": result.stats.kv_tokens,
    }


def told(error: Exception) -> str:
    """Returns an error in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def require_one(outcomes: Sequence[Outcome], options: Iterable[str]) -> None:
    """Raises the first error if no search has a result (`raise_first`)."""
    errors = [outcome.error for outcome in outcomes if outcome.error is not None]
    if errors and len(errors) == len(outcomes):
        raise_first(errors, options)


def raise_first(errors: Sequence[Exception], options: Iterable[str]) -> NoReturn:
    """Raises the first error of searches that all failed, as UsageError if an argument was refused.

    options: of the strategies that ran.
    """
    if type(errors[0]) not in (ValueError, PromptTooLongError, ConstraintError):
        raise errors[0]
    own = {name: f"--option {name}" for name in options}
    raise UsageError(named(str(errors[0]), _SEARCH_OPTIONS | own))
