"""The measurements of `compare`, as tables and as JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from ..cost.forward import KINETICS_INTENSITY, StepCost
from ..model.sparse import SparseConfig
from ..search import SearchResult
from ..select.statistics import Interval, geometric_mean_ratio, paired_proportion_difference, wilson_interval
from .display import Screen, mib, short
from .errors import named
from .outcomes import Outcome, RunStats, describe, told


@dataclass(frozen=True)
class Row:
    """A strategy's run. sparse: None for a dense one."""

    name: str
    sparse: SparseConfig | None
    outcomes: list[Outcome]
    stats: RunStats

    @property
    def label(self) -> str:
        return self.name if self.sparse is None else f"{self.name}, sparse"

    @cached_property
    def results(self) -> list[SearchResult]:
        return [outcome.result for outcome in self.outcomes if outcome.result is not None]

    @cached_property
    def solved(self) -> list[float]:
        """1 or 0 per problem; a failed search counts as not solved."""
        return [float(bool(outcome.solved)) for outcome in self.outcomes]

    @property
    def accuracy(self) -> Interval:
        return wilson_interval(round(sum(self.solved)), len(self.solved))

    @property
    def found(self) -> int:
        return sum(bool(outcome.found) for outcome in self.outcomes)

    @property
    def tokens(self) -> int:
        return sum(result.stats.generated_tokens for result in self.results)

    @property
    def mean_bytes(self) -> float:
        """KV bytes of one search, averaged over its run and over the searches."""
        return _mean([result.stats.mean_bytes for result in self.results])

    @property
    def peak_bytes(self) -> float:
        """Highest KV bytes of one search, averaged over the searches."""
        return _mean([result.stats.peak_bytes for result in self.results])

    @property
    def unshared_bytes(self) -> float:
        """The same if each branch held its own copy of its tokens."""
        token_bytes = self.stats.peak.page_bytes / self.stats.page_size
        most = [max((s.logical_tokens for s in result.stats.memory), default=0) for result in self.results]
        return _mean(most) * token_bytes

    @property
    def failures(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome.error is not None]

    @property
    def stopped(self) -> list[str]:
        """Reasons why searches ended early."""
        return [result.stopped for result in self.results if result.stopped is not None]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


@dataclass(frozen=True)
class Difference:
    """A strategy compared with another on the same problems, with paired 95 % intervals.

    accuracy: the difference (Bonett and Price). tokens, kv: geometric means of the ratios (t of their
    logarithms), over the problems where both have a result with a positive count; None without such problems.
    """

    accuracy: Interval
    tokens: Interval | None
    kv: Interval | None


def difference(ours: Row, theirs: Row) -> Difference:
    pairs = [
        (a.result.stats, b.result.stats)
        for a, b in zip(ours.outcomes, theirs.outcomes, strict=True)
        if a.result is not None and b.result is not None
    ]
    return Difference(
        paired_proportion_difference(ours.solved, theirs.solved),
        _ratio([(a.generated_tokens, b.generated_tokens) for a, b in pairs]),
        _ratio([(a.mean_bytes, b.mean_bytes) for a, b in pairs]),
    )


def _ratio(pairs: Sequence[tuple[float, float]]) -> Interval | None:
    positive = [(a, b) for a, b in pairs if a > 0 and b > 0]
    return geometric_mean_ratio(*zip(*positive, strict=True)) if positive else None


def print_tables(title: str, rows: Sequence[Row]) -> None:
    screen = Screen()
    first = _table("solved", "found", "tokens", "tok/s", "KV MiB\nmean", "KV MiB\npeak", title=title)
    for row in rows:
        accuracy = f"{row.accuracy.value:.0%} ({row.accuracy.low:.0%}-{row.accuracy.high:.0%})"
        speed = f"{row.stats.tokens_per_second:.0f}" if row.stats.generated_tokens else "-"
        kv = mib(row.mean_bytes), mib(row.peak_bytes)
        first.add_row(row.label, accuracy, str(row.found), f"{row.tokens:,}", speed, *kv)
    screen.print(first)
    screen.note(
        "solved: the chosen answer is right (95 % interval); found: a candidate is.\n"
        "KV mean and peak: memory of one search, averaged over its run, and at its highest."
    )
    if len(rows) > 1:
        against = _table("solved, points", "tokens", "KV mean", title=f"against {rows[0].label}")
        for row in rows[1:]:
            found = difference(row, rows[0])
            points = [f"{100 * value:+.1f}" for value in found.accuracy]
            tokens = "-" if found.tokens is None else f"x {found.tokens.value:.2f}"
            against.add_row(row.label, f"{points[0]} ({points[1]} to {points[2]})", tokens, _times(found.kv))
        screen.print(against)
        screen.note(
            "On the same problems, with paired intervals of 95 %: Bonett and Price's for "
            "points; Student's t for x, geometric means (none where all ratios are the same)."
        )
    screen.print(_cost_table(rows))
    screen.note(
        f"eTFLOP: Kinetics' cost, where a byte read counts as {KINETICS_INTENSITY} flops; attention: "
        "its share of them, choosing pages included. unshared: a search's KV at most, if "
        "each branch held its own copy."
    )
    for row in rows:
        _print_troubles(screen, row)


def _times(ratio: Interval | None) -> str:
    if ratio is None:
        return "-"
    value, low, high = (f"{end:.2f}" if end < 1000 else f"{end:.2g}" for end in ratio)
    return f"x {value}" if math.isnan(ratio.low) else f"x {value} ({low}-{high})"


def _table(*headings: str, title: str | None = None) -> Table:
    table = Table(box=SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False, collapse_padding=True)
    table.add_column("strategy", overflow="fold")
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _cost_table(rows: Sequence[Row]) -> Table:
    table = _table("TFLOP", "GB read", "eTFLOP", "attention", "KV MiB\nunshared")
    for row in rows:
        cost = row.stats.cost
        attention = StepCost(attention=cost.attention, selection=cost.selection)
        share = f"{attention.combined() / cost.combined():.0%}" if cost.combined() else "-"
        spent = [short(cost.flops / 1e12), short(cost.bytes / 1e9), short(cost.combined() / 1e12), share]
        table.add_row(row.label, *spent, mib(row.unshared_bytes))
    return table


def _print_troubles(screen: Screen, row: Row) -> None:
    def say(what: str) -> None:
        screen.print(f"{row.label}: {what}", soft_wrap=True)

    count = len(row.outcomes)
    if row.failures:
        outcome = row.failures[0]
        assert outcome.error is not None
        say(f"{len(row.failures)} of {count} failed, first {outcome.task.name}: {told(outcome.error)}")
    if row.stopped:
        say(f"{len(row.stopped)} of {count} ended early, first: {named(row.stopped[0])}")
    if row.stats.searches < count:
        say(f"{count - row.stats.searches} of {count} were saved before; tok/s and cost are of the others")


def as_json(row: Row, first: Row) -> dict[str, Any]:
    against = None
    if row is not first:
        found = difference(row, first)
        against = {
            "accuracy": found.accuracy.to_dict(),
            "tokens": found.tokens and found.tokens.to_dict(),
            "mean_kv_bytes": found.kv and found.kv.to_dict(),
        }
    return {
        "strategy": row.name,
        "sparse": None if row.sparse is None else asdict(row.sparse),
        "problems": len(row.outcomes),
        "solved": round(sum(row.solved)),
        "accuracy": row.accuracy.to_dict(),
        "found": row.found,
        "failed": len(row.failures),
        "ended_early": len(row.stopped),
        "mean_kv_bytes": row.mean_bytes,
        "search_peak_kv_bytes": row.peak_bytes,
        "ets_kv_tokens": sum(result.stats.kv_tokens for result in row.results),
        "against_first": against,
        **row.stats.to_dict(),
        "outcomes": [describe(outcome) for outcome in row.outcomes],
    }
