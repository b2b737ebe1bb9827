"""`tts-decode compare`: several strategies on the same problems, in one table."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from typing import Annotated

from . import options as opt
from . import sampling_options as sampling_opt
from .comparing import ComparedOptions
from .display import print_json
from .errors import at_least
from .filled import filled
from .groups import LimitOptions, ModelOptions, ProblemOptions, SamplingOptions, SparseOptions
from .judging import unjudged_note
from .outcomes import require_one
from .problems import run_problems, run_settings
from .saving import Saved, open_folder, saved_name
from .scorers import is_reward_model, open_scorer
from .tables import Row, as_json, print_tables


@filled
def compare(
    *,
    compared: ComparedOptions,
    parallel: Annotated[int, opt.search_option(help="Problems in flight in one batch.")] = 4,
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
    """Run several strategies on the same problems and print what each solved and what it cost.

    Without --tasks the problems are a fixed set of small arithmetic from reasoning-gym, judged by its own
    verifier.

    Examples:

      tts-decode compare

      tts-decode compare -s best_of_n -s ets -o n=16 -o ets.lambda_b=2

      tts-decode compare --tasks problems.jsonl --json > table.json

      tts-decode compare --limit 100 -s rebase -s ets --save results

      tts-decode compare --shots 60 --sparse 1/8 -s best_of_n -o n=16

    Every strategy is compared with the first one given. A problem whose search fails counts as not solved,
    and the others continue.

    With --sparse each strategy runs twice, dense and sparse. This changes little if prompts have few pages,
    of 16 tokens each.
    """
    at_least(1, parallel=parallel)
    config = sparse.config()
    strategies = compared.strategies(unsafe_tools=chosen_problems.unsafe_tools)
    configs = [None] if config is None else [None, config]
    names = [saved_name(strategy.name, c) for strategy, _ in strategies for c in configs]
    settings = limits.settings(sampling.params(seed, short=chosen_problems.tasks is None))
    problems = compared.problems(chosen_problems, seed)

    rows: list[Row] = []
    with (
        open_folder(save, names, resume=resume),
        model.open(shared=is_reward_model(compared.scorer)) as session,
    ):
        scores = open_scorer(compared.scorer, device=model.device, kv_bytes=session.kv_bytes)
        for strategy, options in strategies:
            for config in configs:
                name = saved_name(strategy.name, config)
                about = run_settings(
                    session.describe(), strategy.name, options, compared.scorer, config, problems, settings
                )
                # Each run has a new decoder, so that counters and peak are its own.
                with nullcontext() if save is None else Saved(save, name, about, len(problems)) as saved:
                    outcomes, stats = run_problems(
                        session.decoder(config),
                        problems,
                        strategy,
                        options,
                        settings,
                        scores,
                        parallel=parallel,
                        saved=saved,
                        on_stats=session.watcher(name, len(problems)),
                    )
                scores.close()
                rows.append(Row(strategy.name, config, outcomes, stats))
    own = {option for strategy, _ in strategies for option in strategy.plain_options}
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
