"""Options of searches that several subcommands share: strategy, limits, cluster and output. Those of the
model, the problems and sampling have modules of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import completion

SEARCH = "Search"
_LIMITS, _OUTPUT, _CLUSTER = "Limits", "Output", "Cluster"

Options = Annotated[
    list[str],
    typer.Option(
        "--option",
        "-o",
        metavar="KEY=VALUE",
        help="An option of the strategy; may be repeated. Functions: tool=python (the sandbox), "
        "retrieve=FILE.py:NAME.",
        rich_help_panel=SEARCH,
        autocompletion=completion.strategy_options,
    ),
]
Scorer = Annotated[
    str | None,
    typer.Option(
        metavar="SCORER",
        help="What guides the search: mean_probability (of the model's own tokens) or its logarithm "
        "mean_logprob; self_evaluation (the model's P(yes)); verifier (the task's own check: an oracle); a "
        "reward model, OWNER/NAME on the hub or a folder, with READER: before it if it does not tell its "
        "reader; or FILE.py:NAME, an async function of branches or a function of the text. Default: "
        "mean_probability, for strategies that need a scorer. If given, strategies that can do without "
        "use it too.",
        show_default=False,
        rich_help_panel=SEARCH,
        autocompletion=completion.scorers,
    ),
]
ScorerTimeout = Annotated[
    float | None,
    typer.Option(
        metavar="SECONDS",
        help="Longest call of the scorer; then that search ends with what it has.",
        rich_help_panel=_LIMITS,
    ),
]
ToolTimeout = Annotated[
    float | None,
    typer.Option(
        metavar="SECONDS",
        help="Longest call of a tool or a retriever; then the tool's output says so, and without a "
        "retriever's text the search ends with what it has.",
        rich_help_panel=_LIMITS,
    ),
]
BudgetTokens = Annotated[
    int | None, typer.Option(help="Tokens that one search may generate in all.", rich_help_panel=_LIMITS)
]
BudgetSeconds = Annotated[
    float | None,
    typer.Option(metavar="SECONDS", help="Time that one search may take.", rich_help_panel=_LIMITS),
]
BudgetCost = Annotated[
    float | None,
    typer.Option(
        metavar="EFLOPS",
        help="Cost of one search at most, such as 5e12: flops + 281.25 * bytes read (Kinetics).",
        rich_help_panel=_LIMITS,
    ),
]
Ray = Annotated[
    str | None,
    typer.Option(
        "--ray",
        metavar="ADDRESS",
        help="Run the searches on actors of a Ray cluster, each with the model: HOST:PORT of its head, "
        "or auto. Without an address: on this machine.",
        show_default=False,
        rich_help_panel=_CLUSTER,
    ),
]
RayActors = Annotated[
    int | None,
    typer.Option(
        help="Number of actors. Default: one a GPU with --device cuda, else one a node.",
        show_default=False,
        rich_help_panel=_CLUSTER,
    ),
]
RayCpus = Annotated[
    int | None,
    typer.Option(
        help="Cores of each actor. Default: an equal share of its node's.",
        show_default=False,
        rich_help_panel=_CLUSTER,
    ),
]
Save = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        help="Folder for the whole results, written as searches end.",
        rich_help_panel=_OUTPUT,
    ),
]
Resume = Annotated[
    bool,
    typer.Option("--resume", help="Go on with what --save holds after a crash.", rich_help_panel=_OUTPUT),
]
Json = Annotated[
    bool,
    typer.Option(
        "--json",
        help="Print the result as JSON, and an error as a line of JSON on stderr.",
        rich_help_panel=_OUTPUT,
    ),
]
