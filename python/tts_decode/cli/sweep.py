"""`tts-decode sweep`: runs strategies x widths x seeds on the same problems, resumably, and reports."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import ResultFileError
from ..extras import install_command, installed
from ..sweeps import budgets_at, estimates, write_tables
from . import options as opt
from .comparing import ComparedOptions
from .display import Display, print_json
from .errors import CommandError, UsageError, at_least
from .filled import filled
from .grid import make_grid, whole_numbers, write_grid
from .groups import (
    ClusterOptions,
    LimitOptions,
    ModelOptions,
    ProblemOptions,
    SamplingOptions,
    SparseOptions,
)
from .info import collect
from .judging import unjudged_note
from .outcomes import raise_first
from .progress import Progress
from .saving import open_folder
from .scorers import is_reward_model, open_scorer
from .strategy_options import MOST_WIDE
from .sweep_run import Batch, Engine, LocalEngine, SweepRun
from .sweep_tables import Report, as_json, print_report


@filled
def sweep(
    *,
    compared: ComparedOptions,
    widths: Annotated[
        str,
        opt.search_option(
            "--widths",
            "-n",
            metavar="N,N",
            help="Widths of the searches (n, or the strategy's name for it).",
        ),
    ] = "4,16",
    seeds: Annotated[
        str,
        opt.search_option(metavar="N,N", help="Seeds: every width is searched from each."),
    ] = "0",
    target: Annotated[
        list[float],
        opt.search_option(
            metavar="SHARE",
            help="Report the smallest budget that solves this share of the problems; may be repeated.",
        ),
    ] = [],  # noqa: B006
    parallel: Annotated[
        int,
        opt.search_option(
            help="Searches in flight in one batch, of all problems and seeds of a strategy and width; fewer "
            "if the KV memory would not hold them at full length. With --ray: per actor."
        ),
    ] = 4,
    chosen_problems: ProblemOptions,
    model: ModelOptions,
    sampling: SamplingOptions,
    limits: LimitOptions,
    sparse: SparseOptions,
    cluster: ClusterOptions,
    save: Annotated[
        Path,
        typer.Option(
            metavar="FOLDER",
            help="Folder for the sweep: whole results, written as searches end, and the tables.",
            rich_help_panel="Output",
        ),
    ],
    resume: opt.Resume = False,
    json_output: opt.Json = False,
) -> None:
    """Run strategies x widths x seeds on the same problems: accuracy against compute.

    Without --tasks the problems are those of tts-decode compare.

    Examples:

      tts-decode sweep --save runs/first

      tts-decode sweep --save runs/votes -s self_consistency -n 32 --target 0.5

      tts-decode sweep --save runs/math --tasks math500 --format math500 -n 4,16

      tts-decode sweep --save runs/first --resume --seeds 0,1

      tts-decode sweep --save runs/large --tasks math500 --ray auto

      tts-decode view runs/first -s ets-width16-seed0

    The folder holds a file for each cell, such as ets-width16-seed0.jsonl, sweep.json with the grid, and the
    tables sweep-searches, -samples, -estimates and -budgets as Parquet. After Ctrl-C or a crash the same
    command with --resume continues; more strategies, widths or seeds extend the sweep.

    A failed cell is reported, and the others continue. pass@k, maj@k, weighted@k and naive@k: docs/sweeps.md.
    """
    at_least(1, parallel=parallel)
    for share in target:
        if not 0 < share <= 1:
            raise UsageError(
                f"--target: got {share}, expected a share of the problems, above 0 and at most 1"
            )
    all_widths = whole_numbers("--widths", widths, 1, MOST_WIDE)
    all_seeds = whole_numbers("--seeds", seeds, 0)
    config = sparse.config()
    strategies = compared.strategies(unsafe_tools=chosen_problems.unsafe_tools)
    grid = make_grid(
        [strategy for strategy, _ in strategies],
        [options for _, options in strategies],
        all_widths,
        [None] if config is None else [None, config],
    )
    short = chosen_problems.tasks is None
    by_seed = {seed: limits.settings(sampling.params(seed, short=short)) for seed in all_seeds}
    problems = compared.problems(chosen_problems, all_seeds[0])

    names = [setting.cell(seed) for setting in grid for seed in all_seeds]
    with (
        open_folder(save, names, resume=resume),
        Display() as display,
        _engine(model, compared.scorer, parallel, cluster, display) as engine,
    ):
        write_grid(save, grid, all_seeds, _about(engine, len(problems)), resume=resume)
        total = len(names) * len(problems)
        work = sum(setting.width for setting in grid) * len(all_seeds) * len(problems)
        progress = Progress(display, total, work, as_json=json_output)
        running = SweepRun(save, engine, problems, by_seed, compared.scorer, progress)
        batches = [running.run(setting) for setting in grid]
        report = _report(batches, target)
        _write(save, report)
        ran = engine.describe()
    if all(search.error is not None for search in report.searches):
        errors = [error for batch in batches for error in [*batch.failed.values(), *batch.errors]]
        raise_first(errors, {name for strategy, _ in strategies for name in strategy.plain_options})
    if json_output:
        print_json(ran | as_json(report))
    else:
        count = f"{len(problems)} problem{'s' * (len(problems) > 1)}"
        count += f", {len(all_seeds)} seed{'s' * (len(all_seeds) > 1)}"
        print_report(f"{count}, {ran['model']}, {ran['dtype']}, threads: {ran['threads']}", report)
    if (note := unjudged_note()) is not None:
        print(f"tts-decode: {note}", file=sys.stderr)
    if report.failed:
        cell, error = next(iter(report.failed.items()))
        raise CommandError(
            f"{len(report.failed)} of {len(names)} cells could not be run, first {cell}: {error}"
        )


@contextmanager
def _engine(
    model: ModelOptions, scorer: str | None, parallel: int, cluster: ClusterOptions, display: Display
) -> Iterator[Engine]:
    if cluster.ray is not None:
        from .remote import remote_engine  # imports the actors' dependencies

        with remote_engine(model, scorer, parallel, cluster, display) as remote:
            yield remote
        return
    cluster.refuse_without_ray()
    with model.open(shared=is_reward_model(scorer), display=display) as session:
        yield LocalEngine(
            session, open_scorer(scorer, device=model.device, kv_bytes=session.kv_bytes), parallel
        )


def _about(engine: Engine, problems: int) -> dict[str, Any]:
    """Returns the contents of sweep.json other than the grid."""
    machine = collect()
    told = ("devices", "threads", "kernel_isa")
    return {
        "versions": machine["versions"],
        "machine": {name: machine[name] for name in told},
        **engine.describe(),
        "problems": problems,
    }


def _report(batches: Sequence[Batch], targets: Sequence[float]) -> Report:
    searches = [search for batch in batches for search in batch.searches]
    return Report(
        searches,
        estimates(searches),
        [budget for target in targets for budget in budgets_at(searches, target)],
        {cell: error for batch in batches for cell, error in batch.failed.items()},
    )


def _write(folder: Path, report: Report) -> None:
    if not installed("pyarrow"):
        print(
            f"tts-decode: no tables were written: {install_command('pyarrow')}, then --resume",
            file=sys.stderr,
        )
        return
    try:
        write_tables(folder, report.searches, report.estimates, report.budgets)
    except ResultFileError as cause:
        raise CommandError(f"--save: {cause}; the results are whole in the .jsonl files") from cause
