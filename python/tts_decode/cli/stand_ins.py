"""Stand-ins for commands, for the shell's completion: their options without their code.

Importing a command imports torch, which takes seconds. A stand-in is made from `completions.json` instead,
which `completion_table.py` writes and a test compares with the commands.
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
    if isinstance(described, list):
        return _command(described)
    app = typer.Typer()
    for subcommand, parameters in described.items():
        app.command(subcommand)(_command(parameters))
    return app


def _command(parameters: list[dict[str, Any]]) -> Callable[..., None]:
    def command(**values: Any) -> None:
        """Is never called."""

    command.__signature__ = inspect.Signature([_parameter(**given) for given in parameters])  # type: ignore[attr-defined]
    command.__annotations__ = {}
    return command


def _parameter(
    name: str, flags: list[str] | None, takes: str, help: str, completer: str | None
) -> inspect.Parameter:
    """Returns a parameter. flags: None for an argument. completer: a function of `completion`."""
    completes = None if completer is None else getattr(completion, completer)
    note = (
        typer.Argument(help=help, autocompletion=completes)
        if flags is None
        else typer.Option(*flags, help=help, autocompletion=completes)
    )
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default={"flag": False, "several": []}.get(takes),
        annotation=Annotated[_TYPES[takes], note],
    )
