"""Functions to write, graded by tests that run in the sandbox."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from ..sandbox import Limits, check_sandbox, passes_tests
from .rows import Row
from .task import Task, TaskFileError

_ASK = (
    "Complete this Python function. Answer with the whole function, in one block of code.\n\n"
    "```python\n{prompt}\n```"
)
_BLOCK = re.compile(r"```(?:python|py|Python)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL)
_LIMITS = Limits(seconds=15.0)
_REMEMBERED = 1024  # cached outcomes per task, which are asked for more than once


def program_task(row: Row, parts: dict[str, Any], name: str, *, unsafe: bool) -> Task:
    """Makes a task from the parts `prompt`, `test` and `entry_point`.

    They are the function's head and docstring, code that defines `check(candidate)`, and the function's name.
    Raises SandboxError if the system offers no sandbox, unless `unsafe`.
    """
    for part in ("prompt", "test", "entry_point"):
        if not isinstance(parts.get(part), str) or not parts[part].strip():
            raise TaskFileError(
                f'{row.place}: "{part}" must be a text that is not empty, got {parts.get(part)!r:.80}'
            )
    prompt, test, function = parts["prompt"], parts["test"], parts["entry_point"].strip()
    if not function.isidentifier():
        raise TaskFileError(f'{row.place}: "entry_point" must name a function, got {function!r:.80}')
    if not unsafe:
        check_sandbox()

    @lru_cache(maxsize=_REMEMBERED)
    def verify(text: str) -> float:
        try:
            code = program(prompt, text, function)
            return float(passes_tests(code, prompt, test, function, _LIMITS, unsafe=unsafe))
        except ValueError as error:
            raise TaskFileError(f"{row.place}: {error}") from error

    return Task(name, _ASK.format(prompt=prompt.strip()), None, verify, waits=True)


def program(prompt: str, text: str, function: str) -> str:
    """Returns the function that a text defines, after the prompt's code before it.

    If the text defines none, it is the prompt completed by the text.
    """
    head = re.compile(rf"^(?:async[ \t]+)?def[ \t]+{re.escape(function)}[ \t]*\(", re.MULTILINE)
    blocks = [block for block in _BLOCK.findall(text) if head.search(block)]
    code = blocks[-1] if blocks else text
    if not head.search(code):
        found = _BLOCK.search(code)
        return prompt.rstrip("\n") + "\n" + (found[1] if found else code)
    before = head.search(prompt)
    return (prompt[: before.start()] if before else "") + code
