"""Stand-ins for commands, for the shell's completion and for `--help`: options and texts without the code.

Importing a command imports torch, which takes seconds. A stand-in is made from `commands.json` instead,
which `command_table.py` writes. Tests compare the table with the commands, and the help of both.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer

from . import completion

_TYPES: dict[str, Any] = {"flag": bool, "one": str | None, "several": list[str]}


def stand_in(name: str) -> Callable[..., None] | typer.Typer:
    """Returns the command `name`, or a `typer.Typer` with its subcommands."""
    described = completion.table()["commands"][name]
    if "parameters" in described:
        return _command(described)
    app = typer.Typer(help=described["help"], no_args_is_help=True)
    for subcommand, about in described["commands"].items():
        app.command(subcommand)(_command(about))
    return app


def strategies_help() -> str:
    """Returns the names of the strategies by family, for the help of commands that run them."""
    families: dict[str, list[str]] = {}
    for name, about in completion.table()["strategies"].items():
        families.setdefault(about["family"], []).append(name)
    lines = ["Strategies, by family; for what each does: [bold]tts-decode strategies[/bold]"]
    lines += [f"[bold]{family}[/bold]: {', '.join(names)}" for family, names in families.items()]
    return "\n\n".join(lines)


def _command(described: dict[str, Any]) -> Callable[..., None]:
    def command(**values: Any) -> None:
        """Is never called."""

    command.__doc__ = described["help"]
    command.__signature__ = inspect.Signature([_parameter(**about) for about in described["parameters"]])  # type: ignore[attr-defined]
    command.__annotations__ = {}
    return command


def _parameter(
    name: str,
    flags: list[str] | None,
    takes: str,
    help: str,
    required: bool = False,
    default: Any = None,
    hides_default: bool = False,
    metavar: str | None = None,
    panel: str | None = None,
    completer: str | None = None,
) -> inspect.Parameter:
    """Returns a parameter. flags: None for an argument. completer: a function of `completion`."""
    shown: dict[str, Any] = {
        "help": help,
        "metavar": metavar,
        "rich_help_panel": panel,
        "show_default": not hides_default,
        "autocompletion": None if completer is None else getattr(completion, completer),
    }
    if default is None:
        default = {"flag": False, "several": []}.get(takes)
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=inspect.Parameter.empty if required else default,
        annotation=Annotated[
            _TYPES[takes], typer.Argument(**shown) if flags is None else typer.Option(*flags, **shown)
        ],
    )
