"""`tts-decode compare`: several strategies on the same problems, in one table."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated, Any, NamedTuple

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from tts_decode import SamplingParams, SparseConfig
from tts_decode.cli import options as opt
from tts_decode.cli.display import mib, short
from tts_decode.cli.errors import CommandError, UsageError, usage_errors
from tts_decode.cli.problems import Outcome, RunStats, Settings, describe, run_problems
from tts_decode.cli.session import Session, open_session
from tts_decode.engines.loading import DEFAULT_MODEL
from tts_decode.tasks import Task, default_tasks, read_tasks
from tts_kernels.cost import KINETICS_INTENSITY, StepCost

_DEFAULT_STRATEGIES = ["best_of_n", "beam_search", "rebase", "ets"]
_DEFAULT_LIMIT = 8  # a few minutes on two cores


def compare(
    strategy: Annotated[
        list[str], typer.Option("--strategy", "-s", help="A strategy to run; may be repeated.")
    ] = _DEFAULT_STRATEGIES,
    tasks: opt.Tasks = None,
    limit: Annotated[
        int | None,
        typer.Option(help="Only the first so many problems. Default: 8 of the default set, all of a file."),
    ] = None,
    shots: Annotated[
        int, typer.Option(help="Solved problems of the default set before each one: a long shared prompt.")
    ] = 0,
    option: opt.Options = [],  # noqa: B006
    scorer: opt.Scorer = "mean_logprob",
    parallel: Annotated[int, typer.Option(help="Problems in flight in one batch.")] = 4,
    model: opt.Model = DEFAULT_MODEL,
    dtype: opt.Dtype = "auto",
    device: opt.Device = "cpu",
    kv_mib: opt.KvMib = None,
    kv_dtype: opt.KvDtype = "auto",
    sparse: opt.Sparse = None,
    sparse_share: opt.SparseShare = "branch",
    sparse_summaries: opt.SparseSummaries = "mean",
    temperature: opt.Temperature = 0.8,
    seed: opt.Seed = 0,
    stop: opt.Stop = "\\n",
    max_tokens: opt.MaxTokens = 64,
    max_step_tokens: opt.MaxStepTokens = 32,
    budget_tokens: opt.BudgetTokens = None,
    budget_seconds: opt.BudgetSeconds = None,
    budget_cost: opt.BudgetCost = None,
    json_output: opt.Json = False,
) -> None:
    """Run several strategies on the same problems and print what each solved and what it cost.

    Without --tasks the problems are a fixed set of small arithmetic from reasoning-gym, judged by its own
    verifier.

    Examples:

      tts-decode compare

      tts-decode compare -s best_of_n -s ets -o n=16 -o ets.lambda_b=2

      tts-decode compare --tasks problems.jsonl --json > table.json

      tts-decode compare --shots 60 --sparse 1/8 -s best_of_n -o n=16

    With --sparse each strategy runs twice, dense and sparse. Where prompts have few pages, of 16 tokens each,
    it changes little.
    """
    strategies = [opt.get_strategy(name) for name in strategy]
    if len({chosen.name for chosen in strategies}) < len(strategies):
        raise UsageError("--strategy: the same strategy is given twice")
    for flag, value, least in (("--limit", limit, 1), ("--parallel", parallel, 1), ("--shots", shots, 0)):
        if value is not None and value < least:
            raise UsageError(f"{flag}: got {value}, expected at least {least}")
    if shots and tasks is not None:
        raise UsageError("--shots: only for the default problems; put examples into the prompts of --tasks")
    sparse_config = opt.sparse_config(sparse, sparse_share, sparse_summaries)
    options = opt.parse_options(strategies, option)
    with usage_errors():
        sampling = SamplingParams(
            temperature,
            seed=seed,
            stop=(opt.unescape(stop),),
            max_tokens=max_tokens,
            max_step_tokens=max_step_tokens,
        )
    settings = Settings(sampling, scorer, budget_tokens, budget_seconds, budget_cost)
    with usage_errors():
        problems = (
            default_tasks(limit or _DEFAULT_LIMIT, shots) if tasks is None else read_tasks(tasks)[:limit]
        )
    unknown = [task.name for task in problems if task.verify is None]
    if unknown:
        raise CommandError(f'task {unknown[0]} has no answer to compare with; add "answer" to its line')

    rows: list[Row] = []
    with open_session(model, dtype, device, kv_mib, kv_dtype) as session:
        for chosen, chosen_options in zip(strategies, options, strict=True):
            for config in [None] if sparse_config is None else [None, sparse_config]:
                name = chosen.name if config is None else f"{chosen.name}, sparse"
                # A decoder of its own, so that its counters and its peak are its own.
                outcomes, stats = run_problems(
                    session.decoder(config),
                    problems,
                    chosen,
                    chosen_options,
                    settings,
                    parallel=parallel,
                    on_stats=session.watcher(name, len(problems)),
                )
                rows.append(Row(name, config, outcomes, stats))
    if json_output:
        print(json.dumps(session.describe() | {"strategies": [_as_json(row) for row in rows]}, indent=2))
    else:
        _print_table(session, problems, rows)


class Row(NamedTuple):
    """A strategy's run. sparse: None for a dense one."""

    name: str
    sparse: SparseConfig | None
    outcomes: list[Outcome]
    stats: RunStats


def _print_table(session: Session, problems: list[Task], rows: list[Row]) -> None:
    ran = session.describe()
    table = Table(
        box=SIMPLE_HEAD,
        title=f"{len(problems)} problems, {ran['model']}, {ran['dtype']}, threads: {ran['threads']}",
        title_justify="left",
        pad_edge=False,
        collapse_padding=True,
    )
    table.add_column("strategy", no_wrap=True)
    for heading in (
        "solved",
        "found",
        "tokens",
        "tok/s",
        "KV tokens\nunique",
        "KV MiB\nunshared",
        "KV MiB\npeak",
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, _, outcomes, stats in rows:
        table.add_row(
            name,
            f"{sum(bool(outcome.solved) for outcome in outcomes)}",
            f"{sum(bool(outcome.found) for outcome in outcomes)}",
            f"{stats.generated_tokens:,}",
            f"{stats.tokens_per_second:.0f}",
            f"{stats.peak.unique_tokens:,}",
            mib(stats.unshared_bytes),
            mib(stats.peak_bytes),
        )
    console = Console(highlight=False)
    console.print(table)
    console.print("solved: the chosen answer is right; found: any candidate is right.")
    console.print("KV at the fullest moment; unshared: the same branches if no page were shared.")
    console.print(_cost_table(rows))
    console.print(f"eTFLOP: Kinetics' cost, where a byte read counts as {KINETICS_INTENSITY} flops;")
    console.print("attention: its share of them, choosing pages included.")


def _cost_table(rows: list[Row]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("strategy", no_wrap=True)
    for heading in ("TFLOP", "GB read", "eTFLOP", "attention"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, _, _, stats in rows:
        cost = stats.cost
        attention = StepCost(attention=cost.attention, selection=cost.selection)
        table.add_row(
            name,
            short(cost.flops / 1e12),
            short(cost.bytes / 1e9),
            short(cost.combined() / 1e12),
            f"{attention.combined() / cost.combined():.0%}",
        )
    return table


def _as_json(row: Row) -> dict[str, Any]:
    name, sparse, outcomes, stats = row
    return {
        "strategy": name.removesuffix(", sparse"),
        "sparse": None if sparse is None else asdict(sparse),
        "problems": len(outcomes),
        "solved": sum(bool(outcome.solved) for outcome in outcomes),
        "found": sum(bool(outcome.found) for outcome in outcomes),
        "ets_kv_tokens": sum(outcome.result.stats.kv_tokens for outcome in outcomes),
        **stats.to_dict(),
        "outcomes": [describe(outcome) for outcome in outcomes],
    }
