"""The subcommands.

Only the called subcommand is imported, and none for help, so that `--help` and `--version` answer
immediately.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib import import_module
from itertools import zip_longest
from typing import Annotated, Any, NamedTuple

import typer

from ..extras import explained
from . import failures
from .help_text import Group, join_lines
from .shell import VARIABLE, command_line
from .stand_ins import stand_in, strategies_help
from .versions import version_text

_HELP = (
    "Search a language model's continuations on one shared KV tree.\n\n"
    'Start with [bold]tts-decode search "What is 3 + 4?"[/bold] or, for a table of strategies on small '
    "problems, [bold]tts-decode compare[/bold]."
)


class _Command(NamedTuple):
    """A subcommand.

    module: of `tts_decode.cli`; defines a function or a `typer.Typer` of the same name. panel: where
    `tts-decode --help` lists it. summary: its text there, the first line of the command's own help.
    """

    module: str
    panel: str
    summary: str
    lists_strategies: bool = False


_SEARCH, _RESULTS, _MACHINE = "Search", "Results", "This machine"

COMMANDS = {
    "demo": _Command(
        "demo", _SEARCH, "Show what a shared tree gains: one search, its tree, memory and speed."
    ),
    "search": _Command(
        "search", _SEARCH, "Search the answers to one prompt, or to each problem of a file.", True
    ),
    "strategies": _Command(
        "strategies",
        _SEARCH,
        "List the strategies by family, or show one strategy's description and options.",
    ),
    "compare": _Command(
        "compare",
        _SEARCH,
        "Run several strategies on the same problems and print what each solved and what it cost.",
        True,
    ),
    "sweep": _Command(
        "sweep",
        _SEARCH,
        "Run strategies x widths x seeds on the same problems: accuracy against compute.",
        True,
    ),
    "view": _Command(
        "view", _RESULTS, "Show saved searches in the browser: trees, texts, probabilities, KV over time."
    ),
    "plot": _Command(
        "plot",
        _RESULTS,
        "Draw saved runs: accuracy against tokens, time, eFLOPs or KV, and KV over a search's time.",
    ),
    "serve": _Command(
        "serve", "Server", "Serve OpenAI's protocol: completions and chats, whole or streamed, and searches."
    ),
    "doctor": _Command(
        "doctor", _MACHINE, "Check this installation: what works, what is missing, and the command for it."
    ),
    "info": _Command(
        "info",
        _MACHINE,
        "Show versions, instruction sets, threads and devices, and whether a model is supported.",
    ),
    "plan-budget": _Command(
        "plan_budget",
        _MACHINE,
        "Say what a search would cost with dense and with sparse attention, and which budget costs least.",
    ),
    "bench": _Command(
        "bench",
        _MACHINE,
        "Measure attention, decoding and searches on this machine (CPU), compared with its limits.",
    ),
}


def run(arguments: list[str], imported: Callable[[], None] = lambda: None) -> int:
    """Runs the command on `arguments` and returns its exit code.

    imported: called once, after all imports, before the command begins.
    """
    completing = VARIABLE in os.environ
    typed = command_line(os.environ) if completing else arguments
    called = next((argument for argument in typed if not argument.startswith("-")), None)
    as_json = "--json" in arguments
    try:
        app = _app(called, complete=not completing and not _asks_for_help(arguments))
        imported()
        return int(app(_with_values(arguments), prog_name="tts-decode", standalone_mode=False) or 0)
    except typer.TyperException as error:
        return failures.tell(failures.of_typer(error, called, [*COMMANDS]), as_json=as_json)
    except typer.Abort:
        interrupted = failures.Failure("interrupted", "", failures.INTERRUPTED)
        return failures.tell(interrupted, as_json=as_json)
    except Exception as error:
        failure = failures.of(error, called)
        if failure is None:
            raise
        return failures.tell(failure, as_json=as_json)


def _asks_for_help(arguments: list[str]) -> bool:
    """Whether --help alone follows a command and words, so that it is no value of an option."""
    *words, last = arguments or [""]
    return last == "--help" and not any(word.startswith("-") for word in words)


def _with_values(arguments: list[str]) -> list[str]:
    """Returns the arguments, with a value added to an option that may lack one."""
    found: list[str] = []
    for argument, after in zip_longest(arguments, arguments[1:], fillvalue="-"):
        found.append(argument)
        if argument == "--ray" and after.startswith("-"):
            found.append("local")
    return found


def _app(called: str | None, *, complete: bool = True) -> typer.Typer:
    """Returns the command with all its subcommands; those other than `called` are only listed.

    complete: whether `called` is to run. Otherwise its options and help suffice, which need no torch.
    """
    app = typer.Typer(
        name="tts-decode",
        help=_HELP,
        no_args_is_help=True,
        cls=Group,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
    )
    app.callback()(_options)
    for name, (module, panel, summary, lists_strategies) in COMMANDS.items():
        if name != called:
            app.command(name, help=summary, rich_help_panel=panel)(_listed)
            continue
        epilog = None
        try:
            command = load_command(module) if complete else stand_in(name)
            if lists_strategies:
                epilog = strategies_help()
        except ModuleNotFoundError as missing:
            raise explained(missing) from missing
        if isinstance(command, typer.Typer):
            join_lines(command)
            app.add_typer(command, name=name, rich_help_panel=panel, cls=Group)
        else:
            app.command(name, epilog=epilog, rich_help_panel=panel)(command)
    join_lines(app)
    return app


def load_command(module: str) -> Any:
    """Imports a command: a function or a `typer.Typer`. module: of a `_Command`."""
    return getattr(import_module(f".{module}", __package__), module)


def _listed() -> None:
    """Stands in for a subcommand that is not called."""


def _show_version(asked: bool) -> None:
    if asked:
        print(version_text())
        raise typer.Exit


def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Show the versions and exit.", metavar="", callback=_show_version, is_eager=True
        ),
    ] = False,
) -> None:
    """The options before a subcommand."""
