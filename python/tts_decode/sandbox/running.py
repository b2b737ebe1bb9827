"""Runs a model's Python programs with limits, isolated from network, files and other processes."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from tts_kernels.checks import integer, number

from ..errors import SandboxError

CHILD = Path(__file__).with_name("child.py")


@dataclass(frozen=True)
class Limits:
    """Limits of a program.

    seconds: of wall-clock time and of processor time. memory: bytes of address space of each of its
    processes. output: bytes of standard output, and of errors. files: bytes that it may write. processes: of
    the user, including it and its threads (not for root).
    """

    seconds: float = 10.0
    memory: int = 1 << 30
    output: int = 1 << 16
    files: int = 1 << 26
    processes: int = 512

    def __post_init__(self) -> None:
        """Raises TypeError, ValueError."""
        number("seconds", self.seconds, above=0, what="a number of seconds")
        for name in ("memory", "output", "files", "processes"):
            integer(name, getattr(self, name), 1)


@dataclass(frozen=True)
class Ran:
    """The outcome of a program.

    ended: "exit" with `status`, "signal" with its number as status, or "time" or "output" if that limit ended
    it.
    """

    output: str
    error: str
    ended: Literal["exit", "signal", "time", "output"]
    status: int | None = None

    @property
    def ok(self) -> bool:
        return self.ended == "exit" and self.status == 0


def run_python(code: str, limits: Limits | None = None, *, unsafe: bool = False) -> Ran:
    """Runs a program to its end or its limits; it may be called from any thread.

    The program sees an empty folder, the installed packages and no network; it can read but not write other
    files. unsafe: runs it with the limits only, and with all the user's rights.

    Raises SandboxError if the system offers no such namespaces, unless `unsafe`.
    """
    limits = limits or Limits()
    with tempfile.TemporaryDirectory(prefix="tts-sandbox-", ignore_cleanup_errors=True) as folder:
        told, tells = os.pipe()
        try:
            process = subprocess.Popen(
                [sys.executable, "-I", "-B", str(CHILD), str(tells)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=(tells,),
                start_new_session=True,
            )
        except BaseException:
            os.close(told)
            raise
        finally:
            os.close(tells)
        with process, os.fdopen(told, "rb") as reasons:
            settings = asdict(limits) | {"code": code, "folder": folder, "isolated": not unsafe}
            try:
                with suppress(BrokenPipeError):
                    _send(process, settings)
                refused = reasons.read().decode(errors="replace")  # ends when the program starts
                if refused:
                    raise SandboxError(_refusal(refused))
                return _watched(process, limits)
            finally:
                _kill(process)


def _send(process: subprocess.Popen[bytes], settings: dict[str, object]) -> None:
    assert process.stdin is not None
    process.stdin.write(json.dumps(settings).encode())
    process.stdin.close()


def _watched(process: subprocess.Popen[bytes], limits: Limits) -> Ran:
    assert process.stdout is not None
    assert process.stderr is not None
    texts = {process.stdout: bytearray(), process.stderr: bytearray()}
    deadline = time.monotonic() + limits.seconds
    ended: Literal["exit", "signal", "time", "output"] = "exit"
    with selectors.DefaultSelector() as streams:
        for stream in texts:
            streams.register(stream, selectors.EVENT_READ)
        while streams.get_map() and ended == "exit":
            ready = streams.select(max(0.0, deadline - time.monotonic()))
            if not ready and time.monotonic() >= deadline:
                ended = "time"
            for key, _ in ready:
                chunk = os.read(key.fd, 1 << 16)
                text = texts[key.fileobj]  # type: ignore[index]  # the stream itself
                text += chunk
                if not chunk:
                    streams.unregister(key.fileobj)
                elif len(text) > limits.output:
                    ended = "output"
    status = None
    if ended == "exit":
        try:
            status = process.wait(max(0.0, deadline - time.monotonic()) + 0.1)
        except subprocess.TimeoutExpired:  # it closed its streams and continues
            ended = "time"
        else:
            if status < 0:
                ended, status = "signal", -status
            if status == signal.SIGXCPU and ended == "signal":
                ended, status = "time", None
    output, error = (bytes(text[: limits.output]).decode(errors="replace") for text in texts.values())
    return Ran(output, error, ended, status)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Ends the process and everything it started: its namespace's first process dies with it."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.wait()


def _refusal(reason: str) -> str:
    return (
        f"sandbox: this system refuses user, network, process and mount namespaces: {reason}; allow "
        "unprivileged user namespaces (Linux 5.12 or later; a container may need another seccomp profile), "
        "or accept that programs run with all your rights: --unsafe-tools, unsafe=True"
    )


@cache
def check_sandbox() -> None:
    """Raises SandboxError if `run_python` would, unless `unsafe`."""
    run_python("", Limits(seconds=30.0))
