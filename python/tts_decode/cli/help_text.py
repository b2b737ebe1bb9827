"""Layout of a command's help: one column of flags, and no placeholder for a flag without a value."""

from __future__ import annotations

import inspect
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

_OWN = ("version", "help", "install_completion", "show_completion")  # typer would show their types


class Command(TyperCommand):
    """A command whose help leaves more room for text.

    An off switch is shown with its on switch, as --[no-]tail, not in a separate column.
    """

    def format_help(self, ctx: Any, formatter: Any) -> None:
        _tidy(self.get_params(ctx))
        super().format_help(ctx, formatter)


class Group(TyperGroup):
    """The same for a command with subcommands, listed in the order in which they were added."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        _tidy(self.get_params(ctx))
        super().format_help(ctx, formatter)


def _tidy(params: list[Any]) -> None:
    """Changes parameters for the help only: nothing is parsed with them afterwards."""
    for param in params:
        if param.param_type_name == "argument":
            param.display_type_rich = lambda ctx: ""  # its name already says it
        if param.name in _OWN:
            param.metavar = ""
        if param.secondary_opts:
            param.opts = [f"--[no-]{param.opts[0].removeprefix('--')}"]
            param.secondary_opts = []
            if param.show_default:
                param.show_default = "on" if param.default else "off"


def join_lines(app: typer.Typer) -> None:
    """Joins each paragraph of the commands' help into one line, which wraps at the terminal's width.

    typer keeps the lines of a docstring, and would wrap those that are too long for the terminal again.
    """
    for command in app.registered_commands:
        told = command.help or inspect.getdoc(command.callback) or ""
        paragraphs = inspect.cleandoc(told).split("\n\n")
        command.help = "\n\n".join(paragraph.replace("\n", " ") for paragraph in paragraphs)
        command.cls = Command
