"""Generates `commands.json`: all commands with their help and options, and the names that options take.

    python -m tts_decode.cli.command_table

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


def command_table() -> dict[str, Any]:
    """Returns the table for the current commands."""
    return {
        "commands": {name: _described(command.module) for name, command in COMMANDS.items()},
        "strategies": {
            strategy.name: {
                "family": family,
                "summary": strategy.summary,
                "options": [*strategy.plain_options],
            }
            for family, members in families().items()
            for strategy in members
            if family != "own"  # made by the user of this process
        },
        "scorers": [*NAMES],
        "task_formats": [*FORMATS],
        "stop_when": [*READY],
    }


def _described(module: str) -> dict[str, Any]:
    """Returns a command in the form that `stand_ins` reads."""
    command = load_command(module)
    if not isinstance(command, typer.Typer):
        return {"help": inspect.getdoc(command), "parameters": _parameters(command)}
    return {
        "help": command.info.help,
        "commands": {
            registered.name: {
                "help": inspect.getdoc(registered.callback),
                "parameters": _parameters(registered.callback),
            }
            for registered in command.registered_commands
            if registered.name is not None and registered.callback is not None
        },
    }


def _parameters(command: Callable[..., Any]) -> list[dict[str, Any]]:
    return [
        _parameter(name, parameter.default, *get_args(parameter.annotation))
        for name, parameter in inspect.signature(command).parameters.items()
    ]


def _parameter(name: str, default: Any, kind: Any, info: ArgumentInfo | OptionInfo) -> dict[str, Any]:
    """Returns a parameter; what is left out is None, as in `stand_ins`."""
    about = {
        "name": name,
        "flags": None if isinstance(info, ArgumentInfo) else _flags(info),
        "takes": "flag" if kind is bool else "several" if _is_list(kind) else "one",
        "help": info.help or "",
        "required": default is inspect.Parameter.empty or None,
        "default": _plain(default),
        "hides_default": info.show_default is False or None,
        "metavar": info.metavar,
        "panel": info.rich_help_panel,
        "completer": None if info.autocompletion is None else _name(info.autocompletion),
    }
    return {key: value for key, value in about.items() if value is not None or key == "flags"}


def _flags(info: OptionInfo) -> list[str]:
    """Returns the explicit flags; without any, typer derives one from the name.

    Inside Annotated, typer keeps the first flag as the default until it reads the signature.
    """
    first: list[Any] = [] if info.default is ... else [info.default]
    return [*first, *(info.param_decls or ())]


def _is_list(kind: Any) -> bool:
    return any(get_origin(part) is list for part in (kind, *get_args(kind)))


def _plain(default: Any) -> Any:
    """Returns a default as JSON has it; None for those that the help does not show."""
    if default is inspect.Parameter.empty or default in (None, [], ()):
        return None
    return default if isinstance(default, (bool, int, float, str, list)) else str(default)


def _name(completer: Callable[..., Any]) -> str:
    return next(name for name, value in vars(completion).items() if value is completer)


if __name__ == "__main__":
    text = json.dumps(command_table(), indent=1, ensure_ascii=False)
    completion.TABLE.write_text(f"{text}\n", encoding="utf-8")
