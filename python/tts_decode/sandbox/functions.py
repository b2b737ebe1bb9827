"""Tests a function that a model wrote."""

from __future__ import annotations

import secrets
from functools import cache
from pathlib import Path

from .checker import NOT_PLAIN
from .running import Limits, run_python


def passes_tests(
    program: str,
    context: str,
    test: str,
    function: str,
    limits: Limits | None = None,
    *,
    unsafe: bool = False,
) -> bool:
    """Whether `check(candidate)`, which `test` defines, returns for the function that `program` defines.

    The tests run in their own process, after `context`, and call the function in the program's process: it
    sees neither them nor their outcome, and exchanges only plain values.

    Raises ValueError if a test passes another value; SandboxError like `run_python`.
    """
    passed, source = secrets.token_hex(16), _source()
    arguments = ", ".join(repr(text) for text in (program, context, test, function, passed, source))
    ran = run_python(f"{source}\ncheck_function({arguments})\n", limits, unsafe=unsafe)
    if ran.ended == "exit" and ran.status == NOT_PLAIN:
        raise ValueError(f"test: the argument of {function} cannot be passed on: {ran.error.strip()[-200:]}")
    return ran.ok and ran.output.endswith(f"{passed}\n")


@cache
def _source() -> str:
    return Path(__file__).with_name("checker.py").read_text(encoding="utf-8")
