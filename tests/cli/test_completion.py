"""Completions of the shells, requested as their scripts request them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tts_decode.cli import completion
from tts_decode.cli.app import COMMANDS, run
from tts_decode.cli.command_table import command_table
from tts_decode.default_model import DEFAULT_MODEL
from tts_decode.search import STRATEGIES

Ask = Callable[..., list[str]]
VARIABLE = "_TTS_DECODE_COMPLETE"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Ask:
    """Returns a shell's completions for a line with the cursor at its end."""

    def ask(line: str, shell: str = "bash") -> list[str]:
        monkeypatch.setenv(VARIABLE, f"complete_{shell}")
        if shell == "bash":
            monkeypatch.setenv("COMP_WORDS", line)
            monkeypatch.setenv("COMP_CWORD", str(len(line.split()) - (not line.endswith(" "))))
        else:
            monkeypatch.setenv("_TYPER_COMPLETE_ARGS", line)
            monkeypatch.setenv("_TYPER_COMPLETE_FISH_ACTION", "get-args")
        with pytest.raises(SystemExit) as ended:
            run([])
        assert ended.value.code == 0
        return capsys.readouterr().out.splitlines()

    return ask


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("tts-decode ", [*COMMANDS]),
        ("tts-decode s", [name for name in COMMANDS if name.startswith("s")]),
        ("tts-decode search --dtype ", ["auto", "float32", "bfloat16", "float16"]),
        ("tts-decode compare --kv-dtype i", ["int8"]),
        ("tts-decode sweep -s ", [*STRATEGIES]),
        ("tts-decode search --strategy mc", ["mcts", "mcts_judge"]),
        ("tts-decode strategies best", ["best_of_n"]),
        ("tts-decode search -s mcts -o ", [f"{key}=" for key in STRATEGIES["mcts"].plain_options]),
        ("tts-decode search -o lambda", ["lambda_b=", "lambda_d="]),
        ("tts-decode search --scorer mean", ["mean_probability", "mean_logprob"]),
        ("tts-decode search --format g", ["gsm8k", "gpqa"]),
        ("tts-decode search --sparse-t", ["--sparse-tail"]),
        ("tts-decode search --json-", ["--json-schema"]),
        ("tts-decode bench ", ["attention", "decode", "search"]),
        ("tts-decode bench decode --pr", ["--prompt"]),
        ("tts-decode plan-budget --con", ["--context"]),
    ],
)
def test_words(asked: Ask, line: str, expected: list[str]) -> None:
    assert asked(line) == expected


@pytest.mark.parametrize(
    ("shell", "told"),
    [("zsh", '"best_of_n":"{}"'), ("fish", "best_of_n\t{}")],
)
def test_zsh_and_fish_show_what_a_strategy_does(asked: Ask, shell: str, told: str) -> None:
    assert told.format(STRATEGIES["best_of_n"].summary) in "\n".join(
        asked("tts-decode search -s best", shell)
    )


def test_the_table_is_of_these_commands() -> None:
    """If it is outdated, `python -m tts_decode.cli.command_table` updates it."""
    assert completion.table() == command_table()


@pytest.mark.parametrize("line", ["tts-decode search ", "tts-decode sweep -s ", "tts-decode search -o "])
def test_the_shell_does_not_wait_for_torch(line: str) -> None:
    probe = """if True:
        import atexit, sys
        heavy = {"torch", "numpy", "transformers", "tts_kernels"}
        atexit.register(lambda: print("imported:", sorted(heavy & set(sys.modules))))
        from tts_decode.cli import main
        main()
    """
    words = {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split()))}
    done = subprocess.run(
        [sys.executable, "-c", probe],
        env={**os.environ, VARIABLE: "complete_bash", **words},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert (done.stderr, done.stdout.splitlines()[-1]) == ("", "imported: []")


def test_models_that_are_here(asked: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hub" / "models--owner--a-model").mkdir(parents=True)
    (tmp_path / "hub" / "datasets--owner--data").mkdir()
    (tmp_path / "here" / "folder").mkdir(parents=True)
    (tmp_path / "here" / "tiny.gguf").touch()
    (tmp_path / "here" / "notes.txt").touch()
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path / "here")
    assert asked("tts-decode search -m ") == [DEFAULT_MODEL, "owner/a-model", "folder/", "tiny.gguf"]
    assert asked("tts-decode search -m own") == ["owner/a-model"]
    assert asked(f"tts-decode search -m {tmp_path}/here/t") == [f"{tmp_path}/here/tiny.gguf"]
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "nothing"))
    assert asked("tts-decode search -m own") == [""]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_scripts_for_shells(
    shell: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")
    with pytest.raises(SystemExit) as ended:
        run(["--show-completion", shell])
    assert ended.value.code == 0
    script = capsys.readouterr().out
    assert f"{VARIABLE}=complete_{shell}" in script
    assert "tts-decode" in script


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the script that is installed, in a bash of its own."""
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")
    with pytest.raises(SystemExit):
        run(["--show-completion", "bash"])
    command = tmp_path / "tts-decode"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m tts_decode "$@"\n')
    command.chmod(0o755)
    script = capsys.readouterr().out + "\n".join(
        ["", "COMP_WORDS=(tts-decode str)", "COMP_CWORD=1", f"_tts_decode_completion {command}"]
    )
    done = subprocess.run(
        ["bash", "--norc", "-c", f'{script}\necho "${{COMPREPLY[*]}}"'],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": ""},
    )
    assert (done.stdout, done.stderr) == ("strategies\n", "")
