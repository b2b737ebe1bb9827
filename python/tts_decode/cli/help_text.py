"""How the help of a command looks: one column of flags, and nothing beside a flag that takes no value."""

from __future__ import annotations

import inspect
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

_OWN = ("version", "help", "install_completion", "show_completion")  # whose type typer would show


class Command(TyperCommand):
    """A command whose help has more room for its words: the flag that switches off stands with the one that
    switches on, as --[no-]tail, and not in a column of its own."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        _tidy(self.get_params(ctx))
        super().format_help(ctx, formatter)


class Group(TyperGroup):
    """The same of a command with subcommands, which it lists in the order in which they were added."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        _tidy(self.get_params(ctx))
        super().format_help(ctx, formatter)


def _tidy(params: list[Any]) -> None:
    """For the help alone: nothing is parsed with the parameters afterwards."""
    for param in params:
        if param.param_type_name == "argument":
            param.display_type_rich = lambda ctx: ""  # beside its name, which says as much
        if param.name in _OWN:
            param.metavar = ""
        if param.secondary_opts:
            param.opts = [f"--[no-]{param.opts[0].removeprefix('--')}"]
            param.secondary_opts = []
            if param.show_default:
                param.show_default = "on" if param.default else "off"


def join_lines(app: typer.Typer) -> None:
    """Makes each paragraph of the commands' help one line, which breaks where the terminal ends: typer keeps
    the lines of a docstring, and breaks those that are too long for the terminal a second time."""
    for command in app.registered_commands:
        told = command.help or inspect.getdoc(command.callback) or ""
        paragraphs = inspect.cleandoc(told).split("\n\n")
        command.help = "\n\n".join(paragraph.replace("\n", " ") for paragraph in paragraphs)
        command.cls = Command
