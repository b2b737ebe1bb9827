"""The subcommands, and errors as one line on stderr.

Only the subcommand that is called is imported, so that `--help` and `--version` answer at once.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from importlib import import_module
from itertools import zip_longest
from typing import Annotated, Any, NamedTuple

import typer

from ..core.visible import one_line
from ..extras import explained
from ..version import package_version

_HELP = (
    "Search a language model's continuations on one shared KV tree.\n\n"
    'Start with [bold]tts-decode search "What is 3 + 4?"[/bold] or, for a table of strategies on small '
    "problems, [bold]tts-decode compare[/bold]."
)


class _Command(NamedTuple):
    """module: of `tts_decode.cli`; holds a function or a `typer.Typer` of the same name.

    summary: what `tts-decode --help` says, the first line of the command's own help.
    """

    module: str
    summary: str
    lists_strategies: bool = False


COMMANDS = {
    "search": _Command("search", "Search the answers to one prompt, or to each problem of a file.", True),
    "compare": _Command(
        "compare",
        "Run several strategies on the same problems and print what each solved and what it cost.",
        True,
    ),
    "sweep": _Command(
        "sweep", "Run strategies x widths x seeds on the same problems: accuracy against compute.", True
    ),
    "view": _Command(
        "view", "Show saved searches in the browser: trees, texts, probabilities, KV over time."
    ),
    "plot": _Command(
        "plot", "Draw saved runs: accuracy against tokens, time, eFLOPs or KV, and KV over a search's time."
    ),
    "serve": _Command(
        "serve", "Serve OpenAI's protocol: completions and chats, whole or streamed, and searches."
    ),
    "strategies": _Command(
        "strategies", "List the strategies by family, or show one strategy's description and options."
    ),
    "plan-budget": _Command(
        "plan_budget",
        "Say what a search would cost with dense and with sparse attention, and which budget costs least.",
    ),
    "info": _Command(
        "info", "Show versions, instruction sets, threads and devices; of a model, whether it is served."
    ),
    "bench": _Command(
        "bench", "Measure attention, decoding and searches on this machine (CPU), beside its own limits."
    ),
}


def run(arguments: list[str], imported: Callable[[], None] = lambda: None) -> int:
    """Runs the command on `arguments` and returns its exit code.

    imported: called once when everything is imported and the command begins.
    """
    try:
        app = _app(next((argument for argument in arguments if not argument.startswith("-")), None))
        imported()
        return int(app(_with_values(arguments), prog_name="tts-decode", standalone_mode=False) or 0)
    except typer.TyperException as error:
        return _fail(_with_given(error), 2)
    except typer.Abort:
        return _fail("interrupted", 130)
    except Exception as error:
        code = _exit_code(error)
        if code is None:
            raise
        from .errors import named

        return _fail(named(str(error)), code)


def _with_values(arguments: list[str]) -> list[str]:
    """The arguments, with the value of an option that may stand without one."""
    found: list[str] = []
    for argument, after in zip_longest(arguments, arguments[1:], fillvalue="-"):
        found.append(argument)
        if argument == "--ray" and after.startswith("-"):
            found.append("local")
    return found


def _with_given(error: typer.TyperException) -> str:
    """typer's message, with the value that it does not tell where pydantic read it."""
    problems: list[dict[str, Any]] = getattr(error.__cause__, "errors", list)()
    got = f"; got {problems[0]['input']!r:.80}" if problems else ""
    return f"{error.format_message()}{got}"


def _app(called: str | None) -> typer.Typer:
    """The command with all its subcommands, of which only `called` can do more than be listed."""
    app = typer.Typer(
        name="tts-decode",
        help=_HELP,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
    )
    app.callback()(_options)
    for name, (module, summary, lists_strategies) in COMMANDS.items():
        if name != called:
            app.command(name, help=summary)(_listed)
            continue
        try:
            command = getattr(import_module(f".{module}", __package__), module)
            epilog = (
                import_module(".strategy_options", __package__).strategies_help()
                if lists_strategies
                else None
            )
        except ModuleNotFoundError as missing:
            raise explained(missing) from missing
        if isinstance(command, typer.Typer):
            _join_lines(command)
            app.add_typer(command, name=name)
        else:
            app.command(name, epilog=epilog)(command)
    _join_lines(app)
    return app


def _join_lines(app: typer.Typer) -> None:
    """Makes each paragraph of the commands' help one line, which breaks where the terminal ends: typer keeps
    the lines of a docstring, and breaks those that are too long for the terminal a second time."""
    for command in app.registered_commands:
        told = command.help or inspect.getdoc(command.callback) or ""
        paragraphs = inspect.cleandoc(told).split("\n\n")
        command.help = "\n\n".join(paragraph.replace("\n", " ") for paragraph in paragraphs)


def _listed() -> None:
    """Stands for a subcommand that is not called."""


def _show_version(asked: bool) -> None:
    if asked:
        print(f"tts-decode {package_version()}")
        raise typer.Exit


def _options(
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True),
    ] = False,
) -> None:
    """The options before a subcommand."""


def _exit_code(error: Exception) -> int | None:
    """Of an error that ends in one line; None for any other.

    The modules that define them are imported here: they import torch, which `--help` does without.
    """
    from .. import errors
    from ..tasks import TaskFileError
    from .errors import CommandError, UsageError

    failures = (
        CommandError,
        TaskFileError,
        errors.ClusterError,
        errors.EngineError,
        errors.JournalError,
        errors.MeshError,
        errors.MissingExtraError,
        errors.ModelLoadError,
        errors.OutOfPagesError,
        errors.ReturnedError,
        errors.SandboxError,
        errors.StrategyError,
        errors.UnsupportedByEngineError,
        errors.UnsupportedModelError,
    )
    return 2 if isinstance(error, UsageError) else 1 if isinstance(error, failures) else None


def _fail(message: str, code: int) -> int:
    hint = " (see: tts-decode --help)" if code == 2 else ""
    print(f"tts-decode: {one_line(message)}{hint}", file=sys.stderr)
    return code
