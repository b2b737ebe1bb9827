"""Errors as users see them: what was wrong, what to do, the exit code, and the same in JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tts_decode import errors
from tts_decode.cli import failures
from tts_decode.cli.app import run
from tts_decode.cli.errors import CommandError, UsageError


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["serach"], "tts-decode --help lists the commands"),
        (["search", "a", "-o", "nn=3"], "tts-decode strategies NAME tells a strategy's options"),
        (["search", "a", "-o", "n=1000000"], "tts-decode strategies NAME tells a strategy's options"),
        (["--nonsense"], "tts-decode --help lists the commands"),
        (["search", "a", "--nonsense"], "tts-decode search --help lists what may be given"),
        (["search", "--tasks", "/no/such/file"], "a line is {"),
        (["search", "a", "-m", "/no/such/model"], "tts-decode info -m NAME"),
    ],
)
def test_hints(arguments: list[str], hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments) in (1, 2)
    out, err = capsys.readouterr()
    assert out == ""
    error, told = err.splitlines()[-2:]
    assert error.startswith("tts-decode: ")
    assert told.startswith(f"hint: {hint}")


def test_errors_in_json(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run(["search", "a", "-s", "etz", "--json"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert json.loads(err.splitlines()[-1]) == {
        "error": "--strategy: got 'etz', expected the name of a strategy; did you mean ets",
        "hint": "tts-decode strategies lists them, with what each does",
        "exit_code": 2,
    }
    assert run(["search", "--tasks", str(tmp_path / "none\x1b.jsonl"), "--json"]) == 1
    told = json.loads(capsys.readouterr().err.splitlines()[-1])
    assert told["exit_code"] == 1
    assert "\\x1b" in told["error"]


@pytest.mark.parametrize(
    ("error", "code", "hint"),
    [
        (UsageError("--seed: got x"), 2, "tts-decode sweep --help"),
        (CommandError("no"), 1, "tts-decode sweep --help"),
        (errors.OutOfPagesError("3 of 8 are free"), 1, "--kv-mib, --kv-offload-mib"),
        (errors.ClusterError("gone"), 1, "ray status"),
        (errors.MissingExtraError("ray: not installed"), 1, "tts-decode doctor"),
        (ModuleNotFoundError("No module named 'torch'", name="torch"), 1, "tts-decode doctor"),
    ],
)
def test_by_kind(error: Exception, code: int, hint: str) -> None:
    failure = failures.of(error, "sweep")
    assert failure is not None
    assert (failure.message, failure.code) == (str(error), code)
    assert hint in failure.hint


def test_faults_of_this_package_are_no_failures() -> None:
    assert failures.of(RuntimeError("a fault"), "search") is None
    assert failures.of(ImportError("cannot import name", name="tts_decode.core"), "search") is None
