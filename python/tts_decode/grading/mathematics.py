"""Runs the process that compares mathematics: its limits, its replacement, and its failures."""

from __future__ import annotations

import atexit
import json
import os
import selectors
import subprocess
import sys
import threading
import time
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from ..errors import EngineError, TTSError
from ..extras import installed, require
from ..select import plain_number

_WORKER = Path(__file__).with_name("math_worker.py")
_START_SECONDS = 60.0  # to import SymPy on a busy machine
Reply = bool | str | list[list[float] | None]


_LARGEST = 1e100  # largest plain number used as a mark
_APART = 1e-9  # relative difference of float64 marks beyond any two spellings of one formula


class UnjudgedError(TTSError):
    """A limit ended a comparison: "time", "memory" or "crash"."""


class Marks(NamedTuple):
    """Numbers that equal formulas share, so formulas that differ in one need no comparison; None: unknown.

    value: of an expression, or of the right side of `x = ...`, where every variable is a number drawn from
    its name. ratio: for an equation, between the differences of its sides at two such points, which no factor
    changes.
    """

    value: complex | None = None
    ratio: complex | None = None

    def apart(self, other: Marks) -> bool:
        if None not in (self.ratio, other.ratio):
            return _apart(self.ratio, other.ratio)
        return _apart(self.value, other.value)


class Mathematics:
    """Compares formulas with math-verify in its own process, from any thread.

    seconds, memory: limits of one comparison. A comparison that exceeds them ends its process, counts as not
    equal and in `unjudged`; the next one gets a new process.
    """

    def __init__(self, seconds: float = 5.0, memory: int = 1 << 30) -> None:
        self._seconds, self._memory = seconds, memory
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0  # process that started it: a forked process starts its own
        self._lock = threading.Lock()
        self.unjudged: Counter[str] = Counter()
        """How often a limit ended a comparison, by limit: "time", "memory", "crash"."""
        self._known = lru_cache(maxsize=1 << 14)(self._ask)
        self._marks = lru_cache(maxsize=1 << 12)(self._read)
        atexit.register(self.close)

    def equal(self, first: str, second: str) -> bool:
        """Whether two LaTeX formulas are equal; False if one cannot be read. Raises UnjudgedError.

        Each formula is read once for its marks; two are compared only if these agree.
        """
        if first == second:
            return True
        return not self._marks(first).apart(self._marks(second)) and self._judged("equal", first, second)

    def rounds(self, decimal: str, formula: str) -> bool:
        """Whether a decimal is the value of a formula, rounded or truncated at its last digit.

        Raises UnjudgedError.
        """
        value, last = self._marks(formula).value, 10.0 ** -len(decimal.partition(".")[2])
        if value is not None and abs(value - float(decimal)) > 2 * last + _APART * abs(value):
            return False
        return self._judged("rounds", decimal, formula)

    def _judged(self, question: str, *formulas: str) -> bool:
        return bool(self._answer(question, *formulas))

    def _read(self, formula: str) -> Marks:
        number = plain_number(formula)
        if number is not None:
            return Marks(complex(number)) if abs(number) < _LARGEST else Marks()
        found = self._answer("marks", formula)
        if not isinstance(found, list):
            return Marks()
        value, ratio = (None if mark is None else complex(*mark) for mark in found)
        return Marks(value, ratio)

    def _answer(self, *question: str) -> Reply:
        reply = self._known(*question)
        if isinstance(reply, str):
            raise UnjudgedError(reply)
        return reply

    @property
    def pid(self) -> int | None:
        """The process id, if one is running."""
        return None if self._process is None else self._process.pid

    def close(self) -> None:
        """Ends the process; a later comparison starts another."""
        with self._lock:
            self._end()

    def _ask(self, *question: str) -> Reply:
        """Returns the answer, or which limit ended it. Raises MissingExtraError without math-verify."""
        if not installed("math_verify"):  # only the comparing process imports it
            require("math_verify")
        with self._lock:
            if self._owner != os.getpid():
                self._process, self._owner = None, os.getpid()
            if self._process is None or self._process.poll() is not None:
                self._process = self._started()
            reply = self._reply(json.dumps(question), self._seconds)
            if not isinstance(reply, str):
                return reply
            reason = {"MemoryError": "memory"}.get(reply, reply)
            if reason not in ("time", "memory", "crash"):
                return False  # the formula cannot be read
            self._end()
            self.unjudged[reason] += 1
            return reason

    def _started(self) -> subprocess.Popen[bytes]:
        arguments = [str(self._memory), str(self._seconds), json.dumps([path for path in sys.path if path])]
        self._process = subprocess.Popen(
            [sys.executable, "-I", str(_WORKER), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ},
        )
        ready = self._reply(None, _START_SECONDS)
        if ready != "ready":
            self._end()
            raise EngineError(
                f"mathematics: got {ready!r} from the process that compares, expected it to start; try: "
                "python -c 'import math_verify'"
            )
        return self._process

    def _reply(self, request: str | None, seconds: float) -> Reply:
        """Returns what the process says within `seconds` seconds, else "time" or "crash"."""
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            if request is not None:
                self._process.stdin.write(request.encode() + b"\n")
                self._process.stdin.flush()
        except OSError:
            return "crash"
        deadline, line = time.monotonic() + seconds, b""
        with selectors.DefaultSelector() as ready:
            ready.register(self._process.stdout, selectors.EVENT_READ)
            while not line.endswith(b"\n"):
                if not ready.select(max(0.0, deadline - time.monotonic())):
                    return "time"
                chunk = os.read(self._process.stdout.fileno(), 4096)
                if not chunk:
                    return "crash"
                line += chunk
        reply: Reply = json.loads(line)
        return reply

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


def _apart(one: complex | None, other: complex | None) -> bool:
    if one is None or other is None:
        return False
    return abs(one - other) > _APART * max(abs(one), abs(other))


MATHEMATICS = Mathematics()
"""The comparer of this process; nothing runs before the first comparison."""
