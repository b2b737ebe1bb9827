"""Which nodes may get an actor now: plain bookkeeping, without Ray."""

from __future__ import annotations

from dataclasses import dataclass

_MOST = 3  # consecutive failures after which a node is left out


@dataclass
class _Trial:
    failures: int = 0
    not_before: float = 0.0


class Trials:
    """Remembers nodes whose actors got no decoder while those of others did.

    Such a node gets its next actor after 1 s, then after 2 s; after three failures in a row it is left out.
    Actors of a node that fail before its next one may start count as one failure. A node that starts anew
    has another id.

    Attributes:
        left_out: ids of nodes that get no more actors.
    """

    def __init__(self) -> None:
        self.left_out: set[str] = set()
        self._trials: dict[str, _Trial] = {}

    def failed(self, node: str, now: float) -> bool:
        """Counts a failure; returns whether to report it: the first in a row, and from the last one on."""
        if node in self.left_out:
            return True
        trial = self._trials.setdefault(node, _Trial())
        if now >= trial.not_before:
            trial.not_before = now + 2.0**trial.failures
            trial.failures += 1
        if trial.failures >= _MOST:
            self.leave_out(node)
        return trial.failures in (1, _MOST)

    def opened(self, node: str) -> None:
        self._trials.pop(node, None)

    def leave_out(self, node: str) -> None:
        self.left_out.add(node)
        self._trials.pop(node, None)

    def may_start(self, node: str, now: float) -> bool:
        trial = self._trials.get(node)
        return node not in self.left_out and (trial is None or now >= trial.not_before)
