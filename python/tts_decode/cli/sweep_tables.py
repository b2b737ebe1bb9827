"""The results of `sweep`, as tables and as JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from ..select import Interval
from ..sweeps import Budget, Estimate, Search
from .display import Screen, mib, short
from .errors import named
from .outcomes import told

Setting = tuple[str, int, bool]  # strategy, width, whether sparse
_SHOWN: dict[str, Callable[[float], str]] = {
    "mean_kv_bytes": mib,
    "peak_kv_bytes": mib,
    "eflops": lambda value: short(value / 1e12),
}
_RULES = ("pass", "maj", "weighted", "naive")


@dataclass(frozen=True)
class Report:
    """The results of a sweep. failed: cells that could not run, and why."""

    searches: Sequence[Search]
    estimates: Sequence[Estimate]
    budgets: Sequence[Budget]
    failed: Mapping[str, Exception]

    def by_setting(self) -> dict[Setting, list[Search]]:
        """Returns the searches by setting, in the order in which they ran."""
        found: dict[Setting, list[Search]] = {}
        for search in self.searches:
            found.setdefault(search.setting, []).append(search)
        return found


def print_report(title: str, report: Report) -> None:
    screen = Screen()
    table = _table(title, "width", "solved", *(f"{rule}\n@k" for rule in _RULES), "tokens", "KV\nMiB")
    figures: dict[Setting, dict[str, Interval]] = {}
    for estimate in report.estimates:
        if estimate.k in (None, estimate.width):
            setting = (estimate.strategy, estimate.width, estimate.sparse)
            figures.setdefault(setting, {})[estimate.measure] = estimate.interval
    for setting, group in report.by_setting().items():
        strategy, width, sparse = setting
        found = figures.get(setting, {})
        done = [search for search in group if search.error is None]
        table.add_row(
            _label(strategy, sparse),
            str(width),
            _share(found["solved"]) if found else "failed",
            *(f"{found[rule].value:.0%}" if rule in found else "-" for rule in _RULES),
            f"{_mean([search.tokens for search in done]):,.0f}" if done else "-",
            mib(_mean([search.peak_kv_bytes for search in done])) if done else "-",
        )
    screen.print(table)
    screen.note(
        "solved: by the strategy's own choice (95 % interval over problems). @k: of k of a search's "
        "candidates, k the width, pass: one is right; maj, weighted: their vote is; naive: the best-scored "
        "one is. tokens, highest KV: mean of a search."
    )
    for target in dict.fromkeys(budget.target for budget in report.budgets):
        screen.print(_budget_table(target, [b for b in report.budgets if b.target == target]))
    if report.budgets:
        screen.note("The cheapest width measured that solves so much; *: its interval does, too.")
    for group in report.by_setting().values():
        _print_troubles(screen, group)


def _budget_table(target: float, budgets: Sequence[Budget]) -> Table:
    table = _table(
        f"{target:.0%} solved takes", "tokens", "seconds", "KV MiB\nmean", "KV MiB\npeak", "eTFLOP"
    )
    rows: dict[str, list[str]] = {}
    for budget in budgets:
        cells = rows.setdefault(_label(budget.strategy, budget.sparse), [])
        if budget.amount is None:
            cells.append("-")
            continue
        amount = _SHOWN.get(budget.unit, short)(budget.amount)
        cells.append(f"{amount}{'*' * budget.sure} at {budget.width}")
    for label, cells in rows.items():
        table.add_row(label, *cells)
    return table


def _print_troubles(screen: Screen, searches: Sequence[Search]) -> None:
    label = f"{_label(searches[0].strategy, searches[0].sparse)} {searches[0].width}"
    failed = [search for search in searches if search.error is not None]
    stopped = [search for search in searches if search.stopped is not None]
    for what, troubled in (("failed", failed), ("ended early", stopped)):
        if troubled:
            first = troubled[0]
            why = named(str(first.error or first.stopped))
            text = f"{label}: {len(troubled)} of {len(searches)} {what}, first {first.task}: {why}"
            screen.print(text, soft_wrap=True)


def _table(title: str, *headings: str) -> Table:
    table = Table(box=SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False, collapse_padding=True)
    table.add_column("strategy", overflow="fold")
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _label(strategy: str, sparse: bool) -> str:
    return f"{strategy}, sparse" if sparse else strategy


def _share(share: Interval) -> str:
    if share.low != share.low:  # NaN: nothing is known
        return f"{share.value:.0%}"
    return f"{share.value:.0%} ({share.low:.0%}-{share.high:.0%})"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def as_json(report: Report) -> dict[str, Any]:
    """Returns the report JSON-ready; searches lack their samples, which are in the tables."""
    searches = [asdict(search) | {"samples": len(search.samples)} for search in report.searches]
    return {
        "estimates": [
            asdict(e) | {"name": e.name, "interval": e.interval.to_dict()} for e in report.estimates
        ],
        "budgets": [
            asdict(budget) | {"accuracy": budget.accuracy and budget.accuracy.to_dict()}
            for budget in report.budgets
        ],
        "searches": searches,
        "failed": {cell: told(error) for cell, error in report.failed.items()},
    }
