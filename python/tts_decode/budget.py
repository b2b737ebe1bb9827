"""Token and wall-time budgets shared by all branches of one search."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field


@dataclass
class Budget:
    """What one search may spend; hand the same object to `root()` and every fork inherits it.

    Attributes:
        max_tokens: sampled tokens over all branches, None for no limit. Prompt and forced tokens are free.
        max_seconds: wall seconds since the first `root()` that got this budget, None for no limit. The time
            of other problems that share the batch counts too.
        tokens_used: sampled tokens so far.

    The engine checks it before each token; it never samples beyond `max_tokens`.
    """

    max_tokens: int | None = None
    max_seconds: float | None = None
    tokens_used: int = field(default=0, init=False)
    _started: float | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        tokens, seconds = self.max_tokens, self.max_seconds
        if tokens is not None and (isinstance(tokens, bool) or not isinstance(tokens, int) or tokens < 1):
            raise ValueError(f"max_tokens must be a positive integer or None, got {self.max_tokens!r}")
        if seconds is not None and not (isinstance(seconds, (int, float)) and 0 < seconds < math.inf):
            raise ValueError(
                f"max_seconds must be a positive number of seconds or None, got {self.max_seconds!r}"
            )

    def start(self) -> None:
        """Starts the clock; later calls do nothing."""
        if self._started is None:
            self._started = time.monotonic()

    @property
    def seconds_used(self) -> float:
        return 0.0 if self._started is None else time.monotonic() - self._started

    @property
    def remaining_tokens(self) -> int | None:
        return None if self.max_tokens is None else max(0, self.max_tokens - self.tokens_used)

    @property
    def exhausted(self) -> bool:
        if self.max_tokens is not None and self.tokens_used >= self.max_tokens:
            return True
        return self.max_seconds is not None and self.seconds_used >= self.max_seconds
