"""The load that dispatching problems puts on the network and on Ray."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

TOKEN_BYTES = 4  # of text: a token of English has some four letters
RAY_TASKS = 582  # a second: `many_tasks` of Ray's release log 2.20.0, 10,000 tasks on 2,500 cores


class Dispatch(NamedTuple):
    """sent, returned: bytes of a problem."""

    sent: float
    returned: float
    per_second: float

    @property
    def bytes_per_second(self) -> float:
        return self.per_second * (self.sent + self.returned)


def dispatched(trees: Sequence[dict[str, Any]], per_hour: float) -> Dispatch:
    sent = sum(tree["prompt"] for tree in trees) / len(trees)
    sampled = sum(tree["sampled"] for tree in trees) / len(trees)
    return Dispatch(TOKEN_BYTES * sent, TOKEN_BYTES * sampled, per_hour / 3600)
