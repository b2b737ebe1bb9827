"""`tts-decode sweep`: strategies x widths x seeds on the same problems, resumable, and what that tells."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from ..core.params import SamplingParams
from ..default_model import DEFAULT_MODEL
from ..errors import ResultFileError
from ..extras import install_command, installed
from ..sweeps import budgets_at, estimates, write_tables
from ..tasks import default_tasks
from . import options as opt
from .display import print_json
from .errors import CommandError, UsageError, at_least, usage_errors
from .grid import make_grid, whole_numbers, write_grid
from .info import collect
from .judging import judged_by, read_problems, refuse_task_options, unjudged_note
from .problems import Settings, raise_first
from .progress import Progress
from .saving import open_folder
from .scorers import check_scorer, is_reward_model, open_scorer
from .session import Session, open_session
from .sweep_run import Batch, SweepRun
from .sweep_tables import Report, as_json, print_report

_DEFAULT_STRATEGIES = ["best_of_n", "beam_search", "rebase", "ets"]
_DEFAULT_LIMIT = 8  # problems of the default set


def sweep(
    save: Annotated[
        Path,
        typer.Option(help="Folder of the sweep: whole results, written as searches end, and the tables."),
    ],
    strategy: Annotated[
        list[str], typer.Option("--strategy", "-s", help="A strategy to run; may be repeated.")
    ] = _DEFAULT_STRATEGIES,
    widths: Annotated[
        str,
        typer.Option(
            "--widths", "-n", help="How wide the strategies search (n, or what they call it), with commas."
        ),
    ] = "4,16",
    seeds: Annotated[str, typer.Option(help="Seeds that every width is searched from, with commas.")] = "0",
    target: Annotated[
        list[float],
        typer.Option(help="Share of problems solved whose least budget is asked for; may be repeated."),
    ] = [],  # noqa: B006
    tasks: opt.Tasks = None,
    task_format: opt.TaskFormat = None,
    field: opt.Fields = [],  # noqa: B006
    split: opt.Split = None,
    verifier: opt.Verifier = None,
    unsafe_tools: opt.UnsafeTools = False,
    limit: Annotated[
        int | None,
        typer.Option(
            help="Only the first so many problems. Default: 8 of the default set's 400, all of a file."
        ),
    ] = None,
    shots: Annotated[
        int, typer.Option(help="Solved problems of the default set before each one: a long shared prompt.")
    ] = 0,
    option: opt.Options = [],  # noqa: B006
    scorer: opt.Scorer = None,
    parallel: Annotated[
        int,
        typer.Option(
            help="Searches in flight in one batch, of all problems and seeds of a strategy and width; fewer "
            "where the KV memory would not hold them at full length."
        ),
    ] = 4,
    model: opt.Model = DEFAULT_MODEL,
    dtype: opt.Dtype = "auto",
    weights: opt.Weights = "auto",
    device: opt.Device = "cpu",
    kv_mib: opt.KvMib = None,
    kv_dtype: opt.KvDtype = "auto",
    sparse: opt.Sparse = None,
    sparse_share: opt.SparseShare = "branch",
    sparse_summaries: opt.SparseSummaries = "mean",
    sparse_dense_layers: opt.SparseDenseLayers = 2,
    temperature: opt.Temperature = 0.8,
    frequency_penalty: opt.FrequencyPenalty = 0.0,
    presence_penalty: opt.PresencePenalty = 0.0,
    stop: opt.Stop = "\\n",
    max_tokens: opt.MaxTokens = 64,
    max_step_tokens: opt.MaxStepTokens = 32,
    budget_tokens: opt.BudgetTokens = None,
    budget_seconds: opt.BudgetSeconds = None,
    budget_cost: opt.BudgetCost = None,
    scorer_timeout: opt.ScorerTimeout = None,
    resume: opt.Resume = False,
    json_output: opt.Json = False,
) -> None:
    """Run strategies x widths x seeds on the same problems: accuracy against compute.

    Without --tasks the problems are those of tts-decode compare.

    Examples:

      tts-decode sweep --save runs/first

      tts-decode sweep --save runs/votes -s self_consistency --widths 32 --seeds 0,1,2 --target 0.5

      tts-decode sweep --save runs/math --tasks math500 --format math500 -s best_of_n -s ets -n 4,16,64

      tts-decode sweep --save runs/first --resume --seeds 0,1

      tts-decode view runs/first -s ets-width16-seed0

    The folder holds a file of each cell, such as ets-width16-seed0.jsonl, sweep.json with the grid, and the
    tables sweep-searches, -samples, -estimates and -budgets as Parquet. After Ctrl-C or a crash the same
    command with --resume goes on; more strategies, widths or seeds extend the sweep.

    A cell that fails is told, and the others go on. pass@k, maj@k, weighted@k and naive@k: docs/sweeps.md.
    """
    strategies = [opt.get_strategy(name) for name in strategy]
    if len({chosen.name for chosen in strategies}) < len(strategies):
        raise UsageError("--strategy: the same strategy is given twice")
    at_least(1, limit=limit, parallel=parallel)
    at_least(0, shots=shots)
    if shots and tasks is not None:
        raise UsageError("--shots: only for the default problems; put examples into the prompts of --tasks")
    for share in target:
        if not 0 < share <= 1:
            raise UsageError(
                f"--target: got {share}, expected a share of the problems, above 0 and at most 1"
            )
    all_widths = whole_numbers("--widths", widths, 1)
    all_seeds = whole_numbers("--seeds", seeds, 0)
    sparse_config = opt.sparse_config(sparse, sparse_share, sparse_summaries, sparse_dense_layers)
    options = opt.parse_options(strategies, option, unsafe_tools=unsafe_tools)
    configs = [None] if sparse_config is None else [None, sparse_config]
    grid = make_grid(strategies, options, all_widths, configs)
    fields = opt.parse_fields(field)
    if tasks is None:
        refuse_task_options(format=task_format, field=field, split=split)
    check_scorer(scorer)
    with usage_errors({"limit, shots": "--limit, --shots", "seed": "--seeds"}):
        sampling = SamplingParams(
            temperature,
            stop=(opt.unescape(stop),),
            max_tokens=max_tokens,
            max_step_tokens=max_step_tokens,
            frequency_penalty=frequency_penalty,
            presence_penalty=presence_penalty,
        )
        settings = Settings(sampling, budget_tokens, budget_seconds, budget_cost, scorer_timeout)
        by_seed = {seed: replace(settings, sampling=replace(sampling, seed=seed)) for seed in all_seeds}
        problems = default_tasks(limit or _DEFAULT_LIMIT, shots) if tasks is None else []
    if tasks is not None:
        problems = read_problems(
            tasks,
            format=task_format,
            fields=fields,
            split=split,
            seed=all_seeds[0],
            unsafe_tools=unsafe_tools,
        )[:limit]
    problems = judged_by(verifier, problems)
    unknown = [task.name for task in problems if task.verify is None]
    if unknown:
        raise CommandError(f'task {unknown[0]} has no answer to compare with; add "answer" to its line')

    names = [setting.cell(seed) for setting in grid for seed in all_seeds]
    with (
        open_folder(save, names, resume=resume),
        open_session(
            model, dtype, device, kv_mib, kv_dtype, weights=weights, shared=is_reward_model(scorer)
        ) as session,
    ):
        write_grid(save, grid, all_seeds, _about(session, len(problems)), resume=resume)
        total = len(names) * len(problems)
        work = sum(setting.width for setting in grid) * len(all_seeds) * len(problems)
        running = SweepRun(
            save,
            session,
            problems,
            by_seed,
            scorer,
            open_scorer(scorer, device=device, kv_bytes=session.kv_bytes),
            parallel,
            Progress(session.display, total, work, as_json=json_output),
        )
        batches = [running.run(setting) for setting in grid]
        report = _report(batches, target)
        _write(save, report)
        ran = session.describe()
    if all(search.error is not None for search in report.searches):
        errors = [error for batch in batches for error in [*batch.failed.values(), *batch.errors]]
        raise_first(errors, {name for chosen in strategies for name in chosen.plain_options})
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


def _about(session: Session, problems: int) -> dict[str, Any]:
    """What sweep.json says beside the grid."""
    machine = collect()
    told = ("devices", "threads", "kernel_isa")
    return {
        "versions": machine["versions"],
        "machine": {name: machine[name] for name in told},
        **session.describe(),
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
