"""Generates `completions.json`: the options of all commands, and the names that they take.

    python -m tts_decode.cli.completion_table

updates it after a command, an option or a strategy has changed.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from typing import Any, get_args, get_origin

import typer
from typer.models import ArgumentInfo, OptionInfo

from ..core.stop_when import READY
from ..tasks import FORMATS
from . import completion
from .app import COMMANDS, load_command
from .scorers import NAMES
from .strategy_options import families


def completion_table() -> dict[str, Any]:
    """Returns the table for the current commands."""
    return {
        "commands": {name: _described(command.module) for name, command in COMMANDS.items()},
        "strategies": {
            strategy.name: {"summary": strategy.summary, "options": [*strategy.plain_options]}
            for family, members in families().items()
            for strategy in members
            if family != "own"  # made by the user of this process
        },
        "scorers": [*NAMES],
        "task_formats": [*FORMATS],
        "stop_when": [*READY],
    }


def _described(module: str) -> list[dict[str, Any]] | dict[str, list[dict[str, Any]]]:
    command = load_command(module)
    if not isinstance(command, typer.Typer):
        return _parameters(command)
    return {
        registered.name: _parameters(registered.callback)
        for registered in command.registered_commands
        if registered.name is not None and registered.callback is not None
    }


def _parameters(command: Callable[..., Any]) -> list[dict[str, Any]]:
    """Returns a command's parameters in the form that `stand_ins` reads."""
    found = []
    for name, parameter in inspect.signature(command).parameters.items():
        kind, info = get_args(parameter.annotation)
        flags = None if isinstance(info, ArgumentInfo) else _flags(info)
        takes = "flag" if kind is bool else "several" if _is_list(kind) else "one"
        completer = None if info.autocompletion is None else _name(info.autocompletion)
        found.append(
            {"name": name, "flags": flags, "takes": takes, "help": info.help or "", "completer": completer}
        )
    return found


def _flags(info: OptionInfo) -> list[str]:
    """Returns the explicit flags; without any, typer derives one from the name.

    Inside Annotated, typer keeps the first flag as the default until it reads the signature.
    """
    first: list[Any] = [] if info.default is ... else [info.default]
    return [*first, *(info.param_decls or ())]


def _is_list(kind: Any) -> bool:
    return any(get_origin(part) is list for part in (kind, *get_args(kind)))


def _name(completer: Callable[..., Any]) -> str:
    return next(name for name, value in vars(completion).items() if value is completer)


if __name__ == "__main__":
    text = json.dumps(completion_table(), indent=1, ensure_ascii=False)
    completion.TABLE.write_text(f"{text}\n", encoding="utf-8")
