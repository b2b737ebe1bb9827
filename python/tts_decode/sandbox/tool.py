"""A tool for searches that runs Python in the sandbox."""

from __future__ import annotations

from collections.abc import Callable

from .running import Limits, Ran, run_python


def python_tool(limits: Limits | None = None, *, unsafe: bool = False) -> Callable[[str], str]:
    """Returns a tool that maps a program to its output, or to the last line of its error.

    The tool raises the errors of `run_python`.
    """

    def tool(code: str) -> str:
        return told(run_python(code, limits, unsafe=unsafe))

    return tool


def told(ran: Ran) -> str:
    """Returns what a model is told about a program that ran."""
    if ran.ok:
        return ran.output.strip()
    last = ran.error.strip().rpartition("\n")[2]
    reason = {
        "time": "the program took too long",
        "output": "the program printed too much",
        "signal": f"the program was ended by signal {ran.status}",
    }.get(ran.ended, last or f"the program ended with status {ran.status}")
    return f"{ran.output.strip()}\n{reason}".strip()
