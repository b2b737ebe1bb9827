"""`tts-decode search`: one prompt, or each problem of a file, with one strategy."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from ..core.visible import one_line
from ..search import SearchResult, render_tree
from ..tasks import Task, final_answer
from . import completion
from . import options as opt
from . import sampling_options as sampling_opt
from .display import Display, Screen, print_json
from .errors import UsageError, named
from .filled import filled
from .groups import LimitOptions, ModelOptions, ProblemOptions, SamplingOptions, SparseOptions
from .judging import unjudged_note
from .outcomes import Outcome, RunStats, describe, require_one, summary, told
from .problems import run_problems, run_settings
from .ranks import mesh_of_torchrun
from .saving import Saved, open_folder, saved_name
from .scorers import check_scorer, is_reward_model, open_scorer
from .strategy_options import get_strategy, parse_options


@filled
def search(
    *,
    prompt: Annotated[str | None, typer.Argument(help="What to ask the model.", show_default=False)] = None,
    strategy: Annotated[
        str,
        opt.search_option(
            "--strategy",
            "-s",
            metavar="NAME",
            help="How to search: a name from the list below, or FILE.py:NAME.",
            autocompletion=completion.strategies,
        ),
    ] = "ets",
    option: opt.Options = [],  # noqa: B006 (typer copies it)
    scorer: opt.Scorer = None,
    raw: Annotated[
        bool,
        opt.search_option("--raw", help="Give the prompt to the model without its chat template."),
    ] = False,
    chosen_problems: ProblemOptions,
    model: ModelOptions,
    sampling: SamplingOptions,
    seed: sampling_opt.Seed = 0,
    limits: LimitOptions,
    sparse: SparseOptions,
    save: opt.Save = None,
    resume: opt.Resume = False,
    json_output: opt.Json = False,
) -> None:
    """Search the answers to one prompt, or to each problem of a file.

    Prints the answer, the tree that was explored and what it cost.

    Examples:

      tts-decode search "What is 3 + 4?"

      tts-decode search "Name a prime above 20." -s beam_search -o n=8

      tts-decode search "Is 91 a prime? Answer in JSON." --json-schema answer.json

      tts-decode search --tasks problems.jsonl -s rebase --save results

      tts-decode search --tasks gsm8k.parquet --format gsm8k -s my.py:strategy
    """
    if prompt is None and chosen_problems.tasks is None:
        raise UsageError(
            'PROMPT: got none, expected a question in quotes, such as "What is 3 + 4?", or --tasks FILE'
        )
    if prompt is not None and chosen_problems.tasks is not None:
        raise UsageError(f"PROMPT: got {prompt!r:.80} and --tasks too, expected one of them")
    chosen = get_strategy(strategy)
    (options,) = parse_options([chosen], option, unsafe_tools=chosen_problems.unsafe_tools)
    check_scorer(scorer)
    sparse_config = sparse.config()
    settings = limits.settings(sampling.params(seed), chat=not raw)
    problems = chosen_problems.read(seed, [] if prompt is None else [Task("prompt", prompt)])
    mesh = mesh_of_torchrun(model.device)
    if mesh is not None and mesh.get_local_rank():
        # Only rank 0 shows progress.
        with Display(Screen(quiet=True)) as unseen, model.open(display=unseen) as session:
            session.decoder(sparse_config, mesh).follow()
        return
    name = saved_name(chosen.name, sparse_config)
    with (
        open_folder(save, [name], resume=resume),
        model.open(shared=is_reward_model(scorer)) as session,
        ExitStack() as cleanup,
    ):
        scores = open_scorer(scorer, chat=not raw, device=model.device, kv_bytes=session.kv_bytes)
        about = run_settings(
            session.describe(), chosen.name, options, scorer, sparse_config, problems, settings
        )
        with nullcontext() if save is None else Saved(save, name, about, len(problems)) as saved:
            decoder = cleanup.enter_context(session.decoder(sparse_config, mesh))
            outcomes, stats = run_problems(
                decoder,
                problems,
                chosen,
                options,
                settings,
                scores,
                saved=saved,
                on_stats=session.watcher(chosen.name, len(problems)),
            )
    require_one(outcomes, chosen.plain_options)
    if json_output:
        results = [
            describe(outcome) | {"search": outcome.result and outcome.result.to_dict()}
            for outcome in outcomes
        ]
        print_json(session.describe() | {"cost": stats.to_dict(), "results": results})
    elif prompt is not None and (result := outcomes[0].result) is not None:
        _print_search(result, stats)
    else:
        _print_outcomes(outcomes, stats)
    if (note := unjudged_note()) is not None:
        print(f"tts-decode: {note}", file=sys.stderr)


def _print_search(result: SearchResult, stats: RunStats) -> None:
    screen = Screen()
    screen.print(result.answer.strip() or "(the answer is empty)")
    marks = Text("* chosen  x pruned  # finished  ~ cut off", "dim")
    screen.print(Text.assemble("\n", (result.strategy, "bold"), " ", marks))
    encoding = (screen.encoding or "").lower()
    tree = render_tree(
        result.tree, best=result.best.node, width=screen.width, ascii_only="utf" not in encoding
    )
    screen.print(tree, soft_wrap=True)
    if result.stopped is not None:
        screen.print(f"ended early: {named(result.stopped)}")
    screen.print(f"\n{summary(stats)}")


def _print_outcomes(outcomes: Sequence[Outcome], stats: RunStats) -> None:
    table = Table(box=SIMPLE_HEAD)
    for heading in ("task", "answer", "expected", "solved", "tokens"):
        table.add_column(heading, justify="right" if heading == "tokens" else "left", no_wrap=True)
    for outcome in outcomes:
        name, expected = one_line(outcome.task.name), one_line(outcome.task.answer or "")
        solved = {None: "", True: "yes", False: "no"}[outcome.solved]
        if outcome.result is None:
            table.add_row(name, "(failed)", expected, solved, "")
            continue
        answer = one_line(final_answer(outcome.result.answer, outcome.task.answer))
        table.add_row(name, answer, expected, solved, f"{outcome.result.stats.generated_tokens:,}")
    screen = Screen()
    screen.print(table)
    for outcome in outcomes:
        if outcome.error is not None:
            screen.print(f"failed: {one_line(outcome.task.name)}: {told(outcome.error)}", soft_wrap=True)
    screen.print(summary(stats))
