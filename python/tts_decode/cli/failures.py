"""Reports errors: one line on stderr, a second one with the remedy, and the exit code."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import typer

from ..core.visible import one_line

USAGE, FAILURE, INTERRUPTED = 2, 1, 130
_BASE = ("torch", "numpy", "httpx")  # packages without which no command can start
_MODEL_HINT = (
    "tts-decode info -m NAME tells whether a model is served; tts-decode doctor, whether one is here"
)
# Hints for options that a command's own help does not explain.
_BY_OPTION = {
    "--option": "tts-decode strategies NAME tells a strategy's options and their defaults",
    "--strategy": "tts-decode strategies lists them, with what each does",
    "NAME": "tts-decode strategies lists them, with what each does",
    "--save": "once the folder can be used again, the same command with --resume continues the run",
    "--resume": "a run continues with the settings that it began with",
    "--scorer": "docs/rewards.md tells of reward models, docs/own-strategy.md of functions of your own",
}
# What pydantic expected, by its error type.
_EXPECTED = {"int_parsing": "an integer", "float_parsing": "a number"}


class Failure(NamedTuple):
    """An error as the user sees it. hint: what to do about it."""

    message: str
    hint: str
    code: int


def of_typer(error: typer.TyperException, command: str | None, commands: Sequence[str]) -> Failure:
    """Describes typer's refusal of an argument. command: the called subcommand; commands: all of them."""
    message = error.format_message()
    # If pydantic read the value, typer quotes its message and omits the value.
    problems: list[dict[str, Any]] = getattr(error.__cause__, "errors", list)()
    if problems:
        got, expected = f"got {problems[0]['input']!r:.80}", _EXPECTED.get(problems[0]["type"])
        option = re.search("'(--?[a-z-]+)", message)
        if expected is None or option is None:
            message += f"; {got}"
        else:
            message = f"{option[1]}: {got}, expected {expected}"
    return Failure(message, _see_help(command if command in commands else None), USAGE)


def of(error: Exception, command: str | None) -> Failure | None:
    """Describes an error that is reported in one line; None for any other, which is a bug of this package.

    The modules that define the errors are imported here: they import torch, which `--help` does not need.
    """
    if isinstance(error, ImportError) and (error.name in _BASE or "compiled module" in str(error)):
        return Failure(str(error), "tts-decode doctor tells what is missing and the command for it", FAILURE)
    from .. import errors
    from ..tasks import TaskFileError
    from .errors import CommandError, UsageError, named

    # By class: the hint; None means the command's help.
    hints: dict[type[Exception], str | None] = {
        UsageError: None,
        TaskFileError: 'a line is {"prompt": "What is 1 + 1?", "answer": 2}; other formats: docs/grading.md',
        errors.MissingExtraError: "tts-decode doctor lists what is installed and what is not",
        errors.ModelLoadError: _MODEL_HINT,
        errors.UnsupportedModelError: _MODEL_HINT,
        errors.OutOfPagesError: "search narrower (-o n=4) or shorter (--max-tokens), or give more room: "
        "--kv-mib, --kv-offload-mib",
        errors.JournalError: "give another --save folder, or remove the journal that it names",
        errors.ClusterError: "ray status tells of the cluster; without --ray all runs in this process",
        errors.MeshError: "without torchrun the model runs in this process",
        errors.SandboxError: "--unsafe-tools runs the model's programs with all your rights",
        CommandError: None,
        errors.EngineError: None,
        errors.ReturnedError: None,
        errors.StrategyError: None,
        errors.UnsupportedByEngineError: None,
    }
    for kind, hint in hints.items():
        if isinstance(error, kind):
            code = USAGE if kind is UsageError else FAILURE
            message = named(str(error))
            about = _BY_OPTION.get(message.partition(":")[0].partition(" ")[0])
            return Failure(message, hint or about or _see_help(command), code)
    return None


def tell(failure: Failure, *, as_json: bool) -> int:
    """Prints a failure and returns the exit code. as_json: one line of JSON."""
    message, hint = one_line(failure.message), one_line(failure.hint)
    if as_json:
        told = {"error": message, "hint": hint, "exit_code": failure.code}
        print(json.dumps(told).replace("\x7f", "\\u007f"), file=sys.stderr)
    else:
        print(f"tts-decode: {message}", file=sys.stderr)
        if hint:
            print(f"hint: {hint}", file=sys.stderr)
    return failure.code


def _see_help(command: str | None) -> str:
    if command is None:
        return "tts-decode --help lists the commands"
    return f"tts-decode {command} --help lists what may be given"
