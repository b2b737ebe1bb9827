"""`tts-decode plot`: draws figures of saved runs."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from ..core.visible import one_line
from ..extras import require
from ..plots import (
    MEASURES,
    Caption,
    Held,
    SavedRun,
    all_failed,
    caption,
    draw_accuracy,
    draw_memory,
    kv_over_time,
    lines_of,
    places_of,
)
from .display import Screen
from .errors import CommandError, UsageError
from .filled import filled
from .saving import holds_saved, read_run, read_saved

_SUFFIXES = (".svg", ".png")
_MOST_NAMED = 3  # values that an error lists


class Axis(str, Enum):
    tokens = "tokens"
    seconds = "seconds"
    eflops = "eflops"
    mean_kv = "mean-kv"
    peak_kv = "peak-kv"
    time = "time"


class ThemeName(str, Enum):
    light = "light"
    dark = "dark"
    both = "both"


@filled
def plot(
    run: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...",
            help="Output of --save FOLDER of sweep, compare or search: folders, searched recursively, or "
            "NAME.jsonl files.",
            show_default=False,
        ),
    ],
    x: Annotated[
        Axis,
        typer.Option(
            "--x",
            metavar="AXIS",
            help="Draw accuracy against a search's tokens, seconds, eflops (docs/cost.md), mean-kv or "
            "peak-kv; time: draw the KV that one problem's searches held.",
        ),
    ] = Axis.tokens,
    strategy: Annotated[
        list[str],
        typer.Option("--strategy", "-s", metavar="NAME", help="Only this strategy; may be repeated."),
    ] = [],  # noqa: B006
    problem: Annotated[
        int | None,
        typer.Option(
            "--problem",
            "-p",
            help="With --x time: which problem, counted from 0. Default: the first that all runs have.",
            show_default=False,
        ),
    ] = None,
    pareto: Annotated[
        bool, typer.Option("--pareto", help="Mark the points that no other beats in cost and accuracy.")
    ] = False,
    theme: Annotated[
        ThemeName,
        typer.Option(
            metavar="THEME",
            help="light, dark, or both (two files, FILE-light and FILE-dark).",
        ),
    ] = ThemeName.light,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="An .svg or a .png file. Default: plot-X.svg in the first RUN's folder.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Draw saved runs: accuracy against tokens, time, eFLOPs or KV, and KV over a search's time.

    A point is a strategy with its settings; a line joins one strategy's widths, from a sweep or from several
    folders of the same problems. Runs that differ only in their seed are one point. Bars are 95 % intervals.

    Examples:

      tts-decode sweep -s best_of_n -s rebase --widths 2,4,8 --save runs/first

      tts-decode plot runs/first --pareto

      tts-decode compare -s best_of_n -s rebase -o n=4 --save runs/n4

      tts-decode compare -s best_of_n -s rebase -o n=16 --save runs/n16

      tts-decode plot runs/n4 runs/n16 --x eflops --pareto

      tts-decode plot runs/n4 runs/n16 --x peak-kv --theme both --out kv.svg

      tts-decode plot runs/n16 --x time --problem 3 --out held.png

    If a strategy ran dense and sparse, a second panel shows their difference at equal cost. A run that is
    still being written can be drawn too: its points are hollow.
    """
    if out is not None and out.suffix not in _SUFFIXES:
        raise UsageError(f"--out: got {out}, expected a .svg or .png file")
    if problem is not None and x is not Axis.time:
        raise UsageError("--problem: only with --x time; accuracy is over all problems")
    if pareto and x is Axis.time:
        raise UsageError("--pareto: not with --x time, which draws no accuracy")
    require("matplotlib")
    runs = _chosen(_read(run), strategy)
    if empty := [one for one in runs if not one.searches]:
        print(f"tts-decode: {_paths(empty)}: no search has ended yet, left out", file=sys.stderr)
    runs = [one for one in runs if one.searches]
    if not runs:
        raise CommandError("RUN: no search has ended yet; wait for one, or give another folder")
    _require_same(runs)
    runs, left_out = _without_failed(runs)
    first = run[0] if run[0].is_dir() else run[0].parent
    for name, file in _files(out or first / f"plot-{x.value}.svg", theme):
        try:
            _draw(file, name, runs, x, problem, pareto, left_out)
        except ValueError as cause:
            raise CommandError(f"RUN: {cause}") from cause
        except OSError as cause:
            raise CommandError(
                f"--out: {file} cannot be written: {cause.strerror}; give another file"
            ) from cause
        Screen().print(str(file), soft_wrap=True)


def _without_failed(runs: list[SavedRun]) -> tuple[list[SavedRun], list[str]]:
    """Returns the runs without settings whose searches all failed, and the figure's notes about those."""
    failed = all_failed(runs)
    if not failed:
        return runs, []
    labels = list(dict.fromkeys(place.label for place in failed))
    more = f" and {len(labels) - _MOST_NAMED} more" if len(labels) > _MOST_NAMED else ""
    told = "; ".join(labels[:_MOST_NAMED]) + more
    if len(failed) == len(runs):
        raise CommandError(f"RUN: every search failed ({told}); there is nothing to draw")
    print(f"tts-decode: {told}: every search failed, left out", file=sys.stderr)
    gone = {place.run.path for place in failed}
    return [one for one in runs if one.path not in gone], [f"Left out, as every search failed: {told}."]


def _draw(
    file: Path,
    theme: str,
    runs: list[SavedRun],
    x: Axis,
    problem: int | None,
    pareto: bool,
    left_out: Sequence[str],
) -> None:
    if x is Axis.time:
        held, about = _memory(runs, problem, left_out)
        draw_memory(file, held, about, theme=theme)
        return
    measure = MEASURES[x.value]
    lines = lines_of(runs, measure)
    if not any(point.cost.value for line in lines for point in line.points):
        raise CommandError(f"RUN: no run tells its {measure.title}; choose another --x")
    notes = [f"Bars: 95 % intervals (accuracy: Wilson; {measure.title}: bootstrap over problems)."]
    if pareto:
        notes.append("Ringed: the Pareto front.")
    if any(line.sparse for line in lines):
        notes.append("Dashed: sparse attention, with the pages read; differences are paired by problem.")
    about = caption(f"Accuracy against {measure.title}", runs, [*notes, *left_out])
    draw_accuracy(file, lines, measure, about, theme=theme, pareto=pareto)


def _memory(runs: list[SavedRun], problem: int | None, left_out: Sequence[str]) -> tuple[list[Held], Caption]:
    ended = [{search.index for search in run.searches if not search.failed} for run in runs]
    common = set.intersection(*ended)
    if problem is None and not common:
        raise CommandError("RUN: no problem's search has ended in all runs; choose with --strategy")
    index = min(common) if problem is None else problem
    if index not in common:
        lacking = next(run for run, found in zip(runs, ended, strict=True) if index not in found)
        raise UsageError(f"--problem: got {index}, of which {lacking.path} has no result")
    held, asked = [], ""
    places = places_of(runs)
    times = Counter(place.label for place in places)
    for place in places:
        (shown,) = (one for one in read_saved(place.run.path) if one.problem.index == index)
        assert shown.result is not None
        seed = f", seed={place.run.seed}" if times[place.label] > 1 else ""
        held.append(kv_over_time(place.label + seed, shown.result))
        asked = shown.problem.task
    what = f"KV held by {held[0].label}" if len(held) == 1 else "KV held by a search"
    notes = [
        "Resident (filled): each KV page once. "
        "Unshared (dashed): if each branch held its own copy of its tokens."
    ]
    title = f"{what}, problem {index} ({one_line(asked):.40})"
    return held, caption(title, runs, [*notes, *left_out], one_problem=True)


def _read(paths: Sequence[Path]) -> list[SavedRun]:
    files: dict[Path, Path] = {}
    for path in paths:
        if not path.exists():
            raise UsageError(
                f"RUN: got {path}, which does not exist; expected a folder of --save, or a NAME.jsonl in it"
            )
        found = sorted(path.rglob("*.jsonl")) if path.is_dir() else [path]
        saved = [file for file in found if holds_saved(file)]
        if not saved:
            raise CommandError(
                f"{path}: holds no NAME.jsonl of --save; give the folder that --save named, or one above it"
            )
        files |= {file.resolve(): file for file in saved}
    return [read_run(file) for file in files.values()]


def _chosen(runs: list[SavedRun], strategies: Sequence[str]) -> list[SavedRun]:
    known = dict.fromkeys(run.strategy for run in runs)
    for name in strategies:
        if name not in known:
            raise UsageError(f"--strategy: got {name!r}, but the runs have {', '.join(known)}")
    return [run for run in runs if not strategies or run.strategy in strategies]


def _require_same(runs: Sequence[SavedRun]) -> None:
    """Requires one model and one set of problems, as a figure shows only one of each."""
    for what, keys in (("models", ("model",)), ("problems", ("problems", "problems_crc32"))):
        found: dict[tuple[str, ...], list[SavedRun]] = {}
        for run in runs:
            found.setdefault(tuple(str(run.settings.get(key)) for key in keys), []).append(run)
        if len(found) > 1:
            told = "; ".join(
                f"{key[0]}{' problems' * (what == 'problems')} ({_paths(group)})"
                for key, group in found.items()
            )
            raise CommandError(f"RUN: the runs are of different {what}: {told}; give those of one")


def _paths(runs: Sequence[SavedRun]) -> str:
    more = f" and {len(runs) - _MOST_NAMED} more" if len(runs) > _MOST_NAMED else ""
    return ", ".join(str(run.path) for run in runs[:_MOST_NAMED]) + more


def _files(file: Path, theme: ThemeName) -> list[tuple[str, Path]]:
    """Returns theme and file of each figure."""
    if theme is ThemeName.both:
        return [(name, file.with_stem(f"{file.stem}-{name}")) for name in ("light", "dark")]
    return [(theme.value, file)]
