"""Captions: model, machine, problems, date and version, and what is incomplete."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..version import package_version
from .runs import SavedRun


@dataclass(frozen=True)
class Caption:
    """title, and subtitle; notes: below the axes, in order, as one text."""

    title: str
    subtitle: str
    notes: tuple[str, ...]


def caption(
    title: str, runs: Sequence[SavedRun], notes: Iterable[str], *, one_problem: bool = False
) -> Caption:
    """Returns the caption of runs with one model and one set of problems. one_problem: draws only one."""
    settings = runs[0].settings
    model = _name(str(settings.get("model", "unknown model")))
    dtypes = _each(run.settings.get("dtype") for run in runs)
    problems = max(run.problems for run in runs)
    seeds = {run.seed for run in runs}
    counted = f"n = {problems} problem{'s' * (problems != 1)}"
    if one_problem:
        counted = f"1 of {problems} problem{'s' * (problems != 1)}"
    if len(seeds) > 1:
        counted += f", {len(seeds)} seeds"
    first = " · ".join(part for part in (f"{model} {dtypes}".strip(), _machine(runs), counted) if part)
    return Caption(title, first, (*notes, *incomplete(runs), _made(runs)))


def incomplete(runs: Sequence[SavedRun]) -> list[str]:
    """Returns a sentence on runs that have not ended, and one on searches that failed."""
    found = []
    if missing := [run for run in runs if run.missing]:
        told = ", ".join(f"{run.path.stem} {len(run.searches)} of {run.problems}" for run in missing[:3])
        more = f", and {len(missing) - 3} more" if len(missing) > 3 else ""
        found.append(f"Hollow: unfinished ({told}{more}).")
    if failed := sum(search.failed for run in runs for search in run.searches):
        searches = "search" if failed == 1 else "searches"
        found.append(f"{failed} {searches} failed: not solved, and of no cost here.")
    return found


def _name(model: str) -> str:
    """Returns the last name of a folder or file; a hub id unchanged."""
    return Path(model).name if Path(model).is_absolute() or model.startswith(".") else model


def _machine(runs: Sequence[SavedRun]) -> str:
    machines = _each(run.made.get("machine") or run.settings.get("device") for run in runs)
    threads = _each(run.settings.get("threads") for run in runs)
    return f"{machines}, threads: {threads}" if threads else machines


def _made(runs: Sequence[SavedRun]) -> str:
    dates = sorted(run.made["date"][:10] for run in runs if "date" in run.made)
    versions = _each(run.made.get("version") for run in runs)
    drawn = f"drawn by tts-kernels {package_version()}"
    if not dates:
        return f"{drawn[0].upper()}{drawn[1:]}."
    span = dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"
    return f"Run {span} with tts-kernels {versions}, {drawn}."


def _each(values: Iterable[object]) -> str:
    return " and ".join(dict.fromkeys(str(value) for value in values if value is not None))
