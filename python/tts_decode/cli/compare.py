"""`tts-decode compare`: several strategies on the same problems, in one table."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from typing import Annotated

import typer

from ..core.params import SamplingParams
from ..default_model import DEFAULT_MODEL
from ..tasks import default_tasks
from . import options as opt
from .display import print_json
from .errors import CommandError, UsageError, at_least, usage_errors
from .judging import judged_by, read_problems, refuse_task_options, unjudged_note
from .problems import Settings, require_one, run_problems, run_settings
from .saving import Saved, open_folder, saved_name
from .scorers import check_scorer, is_reward_model, open_scorer
from .session import open_session
from .tables import Row, as_json, print_tables

_DEFAULT_STRATEGIES = ["best_of_n", "beam_search", "rebase", "ets"]
_DEFAULT_LIMIT = 8  # a few minutes on two cores


def compare(
    strategy: Annotated[
        list[str], typer.Option("--strategy", "-s", help="A strategy to run; may be repeated.")
    ] = _DEFAULT_STRATEGIES,
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
    parallel: Annotated[int, typer.Option(help="Problems in flight in one batch.")] = 4,
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
    seed: opt.Seed = 0,
    stop: opt.Stop = "\\n",
    max_tokens: opt.MaxTokens = 64,
    max_step_tokens: opt.MaxStepTokens = 32,
    budget_tokens: opt.BudgetTokens = None,
    budget_seconds: opt.BudgetSeconds = None,
    budget_cost: opt.BudgetCost = None,
    scorer_timeout: opt.ScorerTimeout = None,
    save: opt.Save = None,
    resume: opt.Resume = False,
    json_output: opt.Json = False,
) -> None:
    """Run several strategies on the same problems and print what each solved and what it cost.

    Without --tasks the problems are a fixed set of small arithmetic from reasoning-gym, judged by its own
    verifier.

    Examples:

      tts-decode compare

      tts-decode compare -s best_of_n -s ets -o n=16 -o ets.lambda_b=2

      tts-decode compare --tasks problems.jsonl --json > table.json

      tts-decode compare --limit 100 -s rebase -s ets --save results

      tts-decode compare --shots 60 --sparse 1/8 -s best_of_n -o n=16

    Every strategy is set against the first one given. A problem whose search fails counts as not solved, and
    the others go on.

    With --sparse each strategy runs twice, dense and sparse. Where prompts have few pages, of 16 tokens each,
    it changes little.
    """
    strategies = [opt.get_strategy(name) for name in strategy]
    if len({chosen.name for chosen in strategies}) < len(strategies):
        raise UsageError("--strategy: the same strategy is given twice")
    at_least(1, limit=limit, parallel=parallel)
    at_least(0, shots=shots)
    if shots and tasks is not None:
        raise UsageError("--shots: only for the default problems; put examples into the prompts of --tasks")
    sparse_config = opt.sparse_config(sparse, sparse_share, sparse_summaries, sparse_dense_layers)
    options = opt.parse_options(strategies, option, unsafe_tools=unsafe_tools)
    fields = opt.parse_fields(field)
    if tasks is None:
        refuse_task_options(format=task_format, field=field, split=split)
    check_scorer(scorer)
    configs = [None] if sparse_config is None else [None, sparse_config]
    names = [saved_name(s.name, c) for s in strategies for c in configs]
    with usage_errors({"limit, shots": "--limit, --shots"}):
        sampling = SamplingParams(
            temperature,
            seed=seed,
            stop=(opt.unescape(stop),),
            max_tokens=max_tokens,
            max_step_tokens=max_step_tokens,
            frequency_penalty=frequency_penalty,
            presence_penalty=presence_penalty,
        )
        settings = Settings(sampling, budget_tokens, budget_seconds, budget_cost, scorer_timeout)
        problems = default_tasks(limit or _DEFAULT_LIMIT, shots) if tasks is None else []
    if tasks is not None:
        problems = read_problems(
            tasks, format=task_format, fields=fields, split=split, seed=seed, unsafe_tools=unsafe_tools
        )[:limit]
    problems = judged_by(verifier, problems)
    unknown = [task.name for task in problems if task.verify is None]
    if unknown:
        raise CommandError(f'task {unknown[0]} has no answer to compare with; add "answer" to its line')

    rows: list[Row] = []
    with (
        open_folder(save, names, resume=resume),
        open_session(
            model, dtype, device, kv_mib, kv_dtype, weights=weights, shared=is_reward_model(scorer)
        ) as session,
    ):
        scores = open_scorer(scorer, device=device, kv_bytes=session.kv_bytes)
        for chosen, chosen_options in zip(strategies, options, strict=True):
            for config in configs:
                name = saved_name(chosen.name, config)
                about = run_settings(
                    session.describe(), chosen.name, chosen_options, scorer, config, problems, settings
                )
                # A decoder of its own, so that its counters and its peak are its own.
                with nullcontext() if save is None else Saved(save, name, about, len(problems)) as saved:
                    outcomes, stats = run_problems(
                        session.decoder(config),
                        problems,
                        chosen,
                        chosen_options,
                        settings,
                        scores,
                        parallel=parallel,
                        saved=saved,
                        on_stats=session.watcher(name, len(problems)),
                    )
                scores.close()
                rows.append(Row(chosen.name, config, outcomes, stats))
    own = {option for chosen in strategies for option in chosen.plain_options}
    require_one([outcome for row in rows for outcome in row.outcomes], own)
    ran = session.describe()
    if json_output:
        print_json(ran | {"strategies": [as_json(row, rows[0]) for row in rows]})
    else:
        count = f"{len(problems)} problem{'s' * (len(problems) > 1)}"
        title = f"{count}, {ran['model']}, {ran['dtype']}, threads: {ran['threads']}"
        print_tables(title, rows)
    if (note := unjudged_note()) is not None:
        print(f"tts-decode: {note}", file=sys.stderr)
