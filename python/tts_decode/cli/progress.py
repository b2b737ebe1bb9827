"""The progress of a sweep: a line on the terminal, or JSON lines on stderr for machines."""

from __future__ import annotations

import json
import sys
import time

from ..core.stats import DecoderStats
from .display import Display, Rate, kv_held
from .outcomes import Outcome


class Progress:
    """Counts the searches of a sweep.

    total: searches. work: the sum of their widths, for the estimate of the time left. as_json: reports each
    finished search in a line on stderr, unless that is a terminal.
    """

    def __init__(self, display: Display, total: int, work: int, *, as_json: bool) -> None:
        self._display = display
        self._total, self._work = total, work
        self._as_json = as_json and not sys.stderr.isatty()
        self._done = self._solved = 0
        self._work_done = self._work_ran = 0
        self._label, self._width = "", 1
        self._rate = Rate()
        self._tokens_per_second = 0.0
        self._stats: DecoderStats | None = None
        self._actors: tuple[int, int] | None = None
        self._seconds, self._began = 0.0, 0.0  # of earlier batches; when this one began

    def begin(self, label: str, width: int) -> None:
        """Begins a batch, which has its own decoder."""
        self._label, self._width = label, width
        self._rate = Rate()
        self._began = time.monotonic()

    def end(self) -> None:
        """Ends the batch; the time until the next one does not count."""
        self._seconds += time.monotonic() - self._began

    def skip(self, count: int) -> None:
        """Leaves out `count` searches of the batch's width."""
        self._done += count
        self._work_done += count * self._width

    def seen(self, stats: DecoderStats, done: int) -> None:
        """Takes the state of the batch's decoder."""
        self._tokens_per_second = self._rate(stats.generated_tokens)
        self._stats = stats
        self._display.update(self.line())

    def joined(self, actors: int, wanted: int) -> None:
        """Takes how many actors of a cluster take part, of how many."""
        self._actors = actors, wanted

    def ended(self, outcome: Outcome, ran: bool) -> None:
        """Counts a search that ended. ran: it ran now, rather than being saved earlier."""
        self._done += 1
        self._solved += bool(outcome.solved)
        self._work_done += self._width
        self._work_ran += self._width * ran
        if self._as_json:
            print(json.dumps(self.told() | {"task": outcome.task.name}), file=sys.stderr, flush=True)

    def line(self) -> str:
        left = self.seconds_left()
        time_left = "" if left is None else f" · {_minutes(left)} left"
        joined, wanted = self._actors or (0, 0)
        missing = f"{joined} of {wanted} actors · " if joined < wanted else ""
        held = "0 MiB" if self._stats is None else kv_held(self._stats)
        return (
            f"{self._done}/{self._total} · solved {self._solved} · {self._label} · {missing}"
            f"{self._tokens_per_second:.0f} tok/s · KV {held}{time_left}"
        )

    def told(self) -> dict[str, object]:
        """Returns the same as `line`, JSON-ready."""
        joined = {"actors": self._actors[0], "actors_wanted": self._actors[1]} if self._actors else {}
        return {
            "done": self._done,
            "total": self._total,
            "solved": self._solved,
            "setting": self._label,
            "tokens_per_second": self._tokens_per_second,
            "kv_bytes": 0 if self._stats is None else self._stats.resident_bytes,
            "kv_offloaded_bytes": 0 if self._stats is None else self._stats.offloaded_bytes,
            "seconds_left": self.seconds_left(),
            **joined,
        }

    def seconds_left(self) -> float | None:
        """Estimates the time left, in proportion to the searches' widths; None until one has ended."""
        if not self._work_ran:
            return None
        elapsed = self._seconds + time.monotonic() - self._began
        return elapsed * (self._work - self._work_done) / self._work_ran


def _minutes(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
