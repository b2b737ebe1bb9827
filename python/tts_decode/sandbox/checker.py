"""Tests of a function that a model wrote, in a process that the function can neither see nor imitate.

The text of this file, followed by a call of `check_function`, is a program for the sandbox: it imports
nothing of the package. The function runs in a process that this program starts, and exchanges plain values
with it over a pipe; the tests run here. So a process that runs no code of the model decides whether they
passed.
"""

from __future__ import annotations

import builtins
import contextlib
import ctypes
import json
import math
import os
import subprocess
import sys
from typing import IO, Any

_NOT_DUMPABLE = 4  # prctl: the same user's processes cannot read its memory or open its descriptors
NOT_PLAIN = 3  # exit status: a test passes a value that is not plain


class NotPlainError(TypeError):
    """A value is not made of numbers, texts, bytes, None, lists, tuples, sets and dicts."""


def check_function(program: str, context: str, test: str, function: str, passed: str, source: str) -> None:
    """Prints `passed` if `check(candidate)`, which `test` defines, returns; `context` runs before it.

    program: defines the function of that name. source: the text of this file.
    """
    if ctypes.CDLL(None).prctl(_NOT_DUMPABLE, 0, 0, 0, 0) != 0:
        raise OSError("prctl: the process cannot be closed to others")
    os.unlink(__file__)  # the program would find the tests here
    candidate = _Candidate(program, function, source)
    names: dict[str, Any] = {"__name__": "tests"}
    with contextlib.suppress(SyntaxError):  # a prompt may end in the middle of its function
        exec(compile(context, "prompt", "exec"), names)
    names[function] = candidate
    exec(compile(test, "test", "exec"), names)
    try:
        _run_if_async(names["check"](candidate))
    except NotPlainError as error:
        print(error, file=sys.stderr)
        sys.exit(NOT_PLAIN)
    print(passed)


class _Candidate:
    """The function, which runs in another process."""

    def __init__(self, program: str, function: str, source: str) -> None:
        calls, self._results = os.pipe(), os.pipe()
        self.__name__ = function
        code = f"{source}\nserve({calls[0]}, {self._results[1]})\n"
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-B", "-X", "utf8", "-c", code],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(calls[0], self._results[1]),
        )
        os.close(calls[0])
        os.close(self._results[1])
        self._to: IO[str] = os.fdopen(calls[1], "w")
        self._from: IO[str] = os.fdopen(self._results[0])
        _outcome(self._ask({"program": program, "function": function}))

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """Returns the function's result; for an async function, an awaitable.

        Changes that the function made to its arguments are made here too.
        """
        reply = self._ask({"arguments": packed(arguments), "named": packed(named)})
        if "changed" in reply:
            changed, changed_named = unpacked(reply["changed"])
            for before, after in zip(arguments, changed, strict=True):
                _change(before, after)
            for name, before in named.items():
                _change(before, changed_named[name])
        return _settled(reply) if reply.get("async") else _outcome(reply)

    def _ask(self, asked: dict[str, Any]) -> dict[str, Any]:
        try:
            self._to.write(json.dumps(asked) + "\n")
            self._to.flush()
            line = self._from.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise RuntimeError("the program ended before its tests did")
        reply: dict[str, Any] = json.loads(line)
        return reply


def _outcome(reply: dict[str, Any]) -> Any:
    if "raised" in reply:
        kind = getattr(builtins, str(reply["raised"]), None)
        fits = isinstance(kind, type) and issubclass(kind, Exception)
        raise (kind if fits else RuntimeError)(str(reply.get("text")))  # type: ignore[misc]
    return unpacked(reply["returned"])


async def _settled(reply: dict[str, Any]) -> Any:
    return _outcome(reply)


def _change(before: Any, after: Any) -> None:
    """Gives a list, set, dict or bytearray the content of another one."""
    if isinstance(before, (list, bytearray)) and isinstance(after, (list, bytearray)):
        before[:] = after
    elif isinstance(before, (dict, set)) and isinstance(after, (dict, set)):
        before.clear()
        before.update(after)


def serve(calls: int, results: int) -> None:
    """Runs the program in its own process, then serves calls of its function."""
    names: dict[str, Any] = {"__name__": "__main__"}
    function: Any = None
    with os.fdopen(calls) as asked, os.fdopen(results, "w") as replies:
        for line in asked:
            call = json.loads(line)
            reply: dict[str, Any] = {}
            try:
                if function is None:
                    exec(compile(call["program"], "program", "exec"), names)
                    function = names[call["function"]]
                    reply["returned"] = None
                else:
                    _answer(function, unpacked(call["arguments"]), unpacked(call["named"]), reply)
            except Exception as error:
                reply |= {"raised": type(error).__name__, "text": str(error)}
            replies.write(json.dumps(reply) + "\n")
            replies.flush()


def _answer(function: Any, arguments: Any, named: Any, reply: dict[str, Any]) -> None:
    """Fills the reply: the function's result, whether it was awaited, and its arguments afterwards."""
    try:
        value = function(*arguments, **named)
        reply["async"] = hasattr(value, "__await__")
        reply["returned"] = packed(_run_if_async(value))
    finally:
        reply["changed"] = packed((arguments, named))


def _run_if_async(value: Any) -> Any:
    """Returns an awaitable's result, or the value itself."""
    if not hasattr(value, "__await__"):
        return value
    import asyncio  # rarely needed and slow to import

    async def waited() -> Any:
        return await value

    return asyncio.run(waited())


def packed(value: Any) -> Any:
    """Returns a plain value for JSON: texts, truth values and None unchanged, others as [kind, value]."""
    if value is None or isinstance(value, (bool, str)):
        return str(value) if isinstance(value, str) else value
    if isinstance(value, int):
        return ["int", hex(value)]
    if isinstance(value, float):
        return ["float", float.hex(value) if math.isfinite(value) else str(float(value))]
    if isinstance(value, complex):
        return ["complex", [packed(value.real), packed(value.imag)]]
    if isinstance(value, (bytes, bytearray)):
        return ["bytes" if isinstance(value, bytes) else "bytearray", value.hex()]
    for kind in (list, tuple, set, frozenset):
        if isinstance(value, kind):
            return [kind.__name__, [packed(item) for item in value]]
    if isinstance(value, dict):
        return ["dict", [[packed(key), packed(item)] for key, item in value.items()]]
    raise NotPlainError(
        f"got a {type(value).__name__}, expected numbers, texts, lists, tuples, sets or dicts"
    )


def unpacked(value: Any) -> Any:
    """Returns the value that `packed` was given."""
    if not isinstance(value, list):
        return value
    kind, content = value
    if kind == "dict":
        return {unpacked(key): unpacked(item) for key, item in content}
    if kind in _COLLECTIONS:
        return _COLLECTIONS[kind](unpacked(item) for item in content)
    return _SCALARS[kind](content)


_COLLECTIONS: dict[str, Any] = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}
_SCALARS: dict[str, Any] = {
    "int": lambda text: int(text, 16),
    "float": lambda text: float.fromhex(text),
    "complex": lambda pair: complex(*map(unpacked, pair)),
    "bytes": bytes.fromhex,
    "bytearray": bytearray.fromhex,
}
