"""Options of searches that several subcommands share: strategy, limits, cluster and output.

Options of the model, the problems and sampling have their own modules.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from . import completion

# Options in their groups of the help.
search_option = partial(typer.Option, rich_help_panel="Search")
_limit_option = partial(typer.Option, rich_help_panel="Limits")
_output_option = partial(typer.Option, rich_help_panel="Output")
_cluster_option = partial(typer.Option, rich_help_panel="Cluster")

Options = Annotated[
    list[str],
    search_option(
        "--option",
        "-o",
        metavar="KEY=VALUE",
        help="An option of the strategy; may be repeated. Functions: tool=python (the sandbox), "
        "retrieve=FILE.py:NAME.",
        autocompletion=completion.strategy_options,
    ),
]
Scorer = Annotated[
    str | None,
    search_option(
        metavar="SCORER",
        help="What guides the search: mean_probability (of the model's own tokens) or its logarithm "
        "mean_logprob; self_evaluation (the model's P(yes)); verifier (the task's own check: an oracle); a "
        "reward model, OWNER/NAME on the hub or a folder, with READER: before it if it does not tell its "
        "reader; or FILE.py:NAME, an async function of branches or a function of the text. Default: "
        "mean_probability, for strategies that need a scorer. If given, strategies that can do without "
        "use it too.",
        show_default=False,
        autocompletion=completion.scorers,
    ),
]
ScorerTimeout = Annotated[
    float | None,
    _limit_option(
        metavar="SECONDS", help="Longest call of the scorer; then that search ends with what it has."
    ),
]
ToolTimeout = Annotated[
    float | None,
    _limit_option(
        metavar="SECONDS",
        help="Longest call of a tool or a retriever; then the tool's output says so, and without a "
        "retriever's text the search ends with what it has.",
    ),
]
BudgetTokens = Annotated[int | None, _limit_option(help="Most tokens that one search may generate.")]
BudgetSeconds = Annotated[
    float | None,
    _limit_option(metavar="SECONDS", help="Longest time of one search."),
]
BudgetCost = Annotated[
    float | None,
    _limit_option(
        metavar="EFLOPS",
        help="Highest cost of one search, such as 5e12: flops + 281.25 * bytes read (Kinetics).",
    ),
]
Ray = Annotated[
    str | None,
    _cluster_option(
        "--ray",
        metavar="ADDRESS",
        help="Run the searches on actors of a Ray cluster, each with the model: HOST:PORT of its head, "
        "or auto. Without an address: on this machine.",
        show_default=False,
    ),
]
RayActors = Annotated[
    int | None,
    _cluster_option(
        help="Number of actors. Default: one per GPU with --device cuda, else per node.", show_default=False
    ),
]
RayCpus = Annotated[
    int | None,
    _cluster_option(help="Cores of each actor. Default: an equal share of its node's.", show_default=False),
]
RayStartSeconds = Annotated[
    int | None,
    _cluster_option(
        metavar="SECONDS",
        help="Longest time for an actor to load the model; then it is given up. Default: 600.",
        show_default=False,
    ),
]
Save = Annotated[
    Path | None,
    _output_option(metavar="FOLDER", help="Folder for the results, written as searches end."),
]
Resume = Annotated[
    bool,
    _output_option("--resume", help="Continue an interrupted run from its --save FOLDER."),
]
Json = Annotated[
    bool,
    _output_option("--json", help="Print the result as JSON, and an error as a line of JSON on stderr."),
]
