"""Budgets of tokens, wall time and cost, shared by all branches of one search."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from ..cost.forward import KINETICS_INTENSITY
from .checks import checked_count, checked_positive


@dataclass
class Budget:
    """Limits of one search; pass one object to `root()` and every fork inherits it.

    Attributes:
        max_tokens: sampled tokens over all branches; None for no limit. Prompt and forced tokens are free.
        max_seconds: wall-clock seconds since the first `root()` with this budget; None for no limit. Time
            spent on other problems in the same batch counts too.
        max_cost: eFLOPs (flops + intensity * bytes, `tts_decode.cost`) over all branches; None for no limit.
            Every forward counts, including the prompt's; of a forward shared with other searches, the
            branches' share counts (`CostMeter`).
        intensity: flops that one byte read is worth in max_cost; default: the value of Kinetics.
        tokens_used: sampled tokens so far.
        cost_used: eFLOPs so far.

    The engine checks the budget before each token. It never samples beyond `max_tokens`. After `max_cost` is
    reached, it samples no further token; the forward that reached it may exceed it, and so may a scorer's
    later calls.
    """

    max_tokens: int | None = None
    max_seconds: float | None = None
    max_cost: float | None = None
    intensity: float = KINETICS_INTENSITY
    tokens_used: int = field(default=0, init=False)
    cost_used: float = field(default=0.0, init=False)
    _started: float | None = field(default=None, init=False, repr=False)
    _paused_at: float | None = field(default=None, init=False, repr=False)  # seconds used

    def __post_init__(self) -> None:
        if self.max_tokens is not None:
            self.max_tokens = checked_count("max_tokens", self.max_tokens)
        if self.max_seconds is not None:
            self.max_seconds = checked_positive("max_seconds", self.max_seconds, "a number of seconds")
        if self.max_cost is not None:
            self.max_cost = checked_positive("max_cost", self.max_cost, "a number of eFLOPs")
        self.intensity = checked_positive("intensity", self.intensity, "a number of flops per byte")

    def start(self) -> None:
        """Starts the clock; later calls do nothing."""
        if self._started is None:
            self._started = time.monotonic()

    def charge(self, flops: float, read_bytes: float) -> None:
        """Charges a forward, or a branch's share of one, to the budget."""
        if self._paused_at is None:
            self.cost_used += flops + self.intensity * read_bytes

    def count(self, tokens: int) -> None:
        """Charges sampled tokens to the budget."""
        if self._paused_at is None:
            self.tokens_used += tokens

    def pause(self) -> None:
        """Makes later work free and stops the clock, while a search repeats what it already paid for."""
        self._paused_at = self.seconds_used

    def set_used(self, tokens: int, cost: float, seconds: float) -> None:
        """Sets what a search had spent when it was at this point before."""
        self.tokens_used, self.cost_used = tokens, cost
        self._started = time.monotonic() - seconds
        if self._paused_at is not None:
            self._paused_at = seconds

    def go_on(self) -> None:
        """Ends a pause."""
        if self._paused_at is not None:
            self._started, self._paused_at = time.monotonic() - self._paused_at, None

    @property
    def seconds_used(self) -> float:
        if self._paused_at is not None:
            return self._paused_at
        return 0.0 if self._started is None else time.monotonic() - self._started

    @property
    def remaining_tokens(self) -> int | None:
        return None if self.max_tokens is None else max(0, self.max_tokens - self.tokens_used)

    @property
    def exhausted(self) -> bool:
        return self.spent is not None

    @property
    def spent(self) -> str | None:
        """Returns the limit that is used up, "max_tokens", "max_cost" or "max_seconds"; else None."""
        if self.max_tokens is not None and self.tokens_used >= self.max_tokens:
            return "max_tokens"
        if self.max_cost is not None and self.cost_used >= self.max_cost:
            return "max_cost"
        if self.max_seconds is not None and self.seconds_used >= self.max_seconds:
            return "max_seconds"
        return None
