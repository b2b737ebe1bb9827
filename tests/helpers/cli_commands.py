"""Runs the command on a tiny model, for tests: files for it, and calls with small settings."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from tiny_gguf import write_tiny_gguf
from tts_decode.cli.app import run

SMALL = ["--max-tokens", "12", "--max-step-tokens", "5", "--dtype", "float32"]
PLAN = ["plan-budget", "--dense-layers", "0", "--flops", "1e12", "--bandwidth", "1e10", "--dtype", "bfloat16"]
TASKS = ["--tasks", "{folder}/tasks.jsonl", "-s", "best_of_n", "-o", "n=2"]


def default_signals() -> None:
    """For a child process: whoever runs the tests in the background may have had SIGINT ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def write_files(folder: Path) -> None:
    """A model, a damaged copy of it, and task files."""
    write_tiny_gguf(folder / "tiny.gguf")
    lines = [{"prompt": "1+1=", "answer": 2}, {"name": "sky", "prompt": "The sky?", "answer": "blue"}]
    (folder / "tasks.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    (folder / "cut.gguf").write_bytes((folder / "tiny.gguf").read_bytes()[:3000])
    (folder / "open.jsonl").write_text('{"prompt": "Say something."}')


def search(folder: Path, *arguments: str) -> int:
    return run(["search", "-m", str(folder / "tiny.gguf"), *SMALL, *arguments])


def compare(folder: Path, *arguments: str) -> int:
    return run(["compare", "-m", str(folder / "tiny.gguf"), *SMALL, *arguments])


def search_tasks(folder: Path, *arguments: str) -> int:
    return search(folder, *(argument.format(folder=folder) for argument in TASKS), *arguments)


def last_error(capsys: pytest.CaptureFixture[str]) -> str:
    return error_line(capsys.readouterr().err)


def error_line(err: str) -> str:
    """What went wrong, or a note: the last line that the command says itself, without the hint after it. The
    same line where an error is JSON, as after --json."""
    last = err.splitlines()[-1]
    if last.startswith('{"error": '):
        return f"tts-decode: {json.loads(last)['error']}"
    return [line for line in err.splitlines() if line.startswith("tts-decode: ")][-1]
