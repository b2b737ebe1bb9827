"""Text of models, files and users reaches the terminal verbatim: no markup, no control sequences."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
from cli_commands import SMALL, error_line
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.table import Table
from rich.text import Text
from scripted import run_scripted, scripted_decoder
from tiny_gguf import write_tiny_gguf
from tts_decode import DecoderStats
from tts_decode.cli.app import run
from tts_decode.cli.display import Display, Screen, print_json
from tts_decode.cli.outcomes import Outcome, RunStats
from tts_decode.cli.search import _print_outcomes, _print_search
from tts_decode.cli.tables import Row, print_tables
from tts_decode.core.visible import one_line, visible
from tts_decode.cost import StepCost
from tts_decode.search import render_tree, self_consistency
from tts_decode.tasks import Task

EVIL = [
    "[/b]",
    "[/INST] 7",
    "[bold red]7[/bold red][link=x]",
    ":smile: 7",
    "\x1b[2J\x1b[31m7",
    "\x1b]0;title\x07 7",
    "\x9b31m 7 \x84",
    "7\r8\x08\x7f\x00",
    "\u202e7\u2066\u200b\u061c",
    "7\u20288\u2029",
    "\ud800 7",
]
_OWN = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")  # what rich itself sends to a terminal


def obeyed(text: str) -> set[str]:
    """Characters that a terminal would obey."""
    return {c for c in text if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") and c not in "\n\t"}


def printed(capsys: pytest.CaptureFixture[str]) -> str:
    out, err = capsys.readouterr()
    assert not obeyed(out + err)
    return out + err


@given(st.text(st.characters()))
def test_visible_leaves_nothing_to_obey(text: str) -> None:
    shown = visible(text)
    assert obeyed(shown) <= {"\u200c", "\u200d"}
    assert visible(shown) == shown
    assert "\n" not in one_line(text)
    if not obeyed(text):
        assert shown == text


def test_visible_says_what_was_there() -> None:
    assert visible("a\x1b[31m\x9b\u202e\ud800\n\té\N{GRINNING FACE}") == (
        "a\\x1b[31m\\x9b\\u202e\\ud800\n\té\N{GRINNING FACE}"
    )


@settings(max_examples=60)
@given(st.lists(st.text(st.characters()) | st.sampled_from(EVIL), min_size=1, max_size=4))
def test_a_screen_shows_texts_of_any_kind(texts: list[str]) -> None:
    """As an argument, in a table, in its title, in a Text, on a terminal and off it."""
    for on_terminal in (False, True):
        stream = io.StringIO()
        screen = Screen(stream, force_terminal=on_terminal, width=80)
        table = Table("heading", title=texts[0])
        for text in texts:
            screen.print(text)
            screen.print(Text(text, "bold"))
            table.add_row(text)
        screen.print(table)
        with Display(screen) as display:
            display.stage(texts[0])
            display.update(texts[-1])
        out = stream.getvalue()
        assert not obeyed(_OWN.sub("", out).replace("\r", "")) - {"\u200c", "\u200d"}
        assert "?25l" not in out
    for text in texts:
        if text.isascii() and text.isprintable() and len(text) < 70:
            assert text in "".join(_OWN.split(out))


def outcomes(text: str) -> list[Outcome]:
    """A search whose steps, task and expected answer are all this text, and one that failed with it."""

    def script(prefix: str, k: int) -> tuple[str, str]:
        return (f"{text} {k}\n", "stop_string") if prefix.count("\n") < 2 else (text, "eos")

    result = run_scripted(scripted_decoder(script), self_consistency, f"Q: {text}", n=2)
    task = Task(text, text, text, lambda answer: 1.0)
    return [Outcome(task, result, None, 1.0, (1.0, 1.0)), Outcome(task, None, ValueError(text))]


STATS = RunStats(1, 1.0, 1, DecoderStats(1, 1, 1, 1.0, StepCost(), 1, 0, 1, 1, 1, 1, 1, 16), 1, StepCost())


@pytest.mark.parametrize("text", EVIL[:-1], ids=ascii)  # no engine gives half a pair
def test_results_are_shown_as_they_are(
    text: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    done = outcomes(text)
    assert done[0].result is not None
    shown = one_line(text)
    _print_outcomes(done, STATS)
    assert printed(capsys).count(shown) >= 5  # task, answer and expected; task and reason
    _print_search(done[0].result, STATS)
    assert printed(capsys).count(shown) >= 3
    print_tables(f"1 problem, {text}", [Row(text, None, done, STATS), Row("other", None, done, STATS)])
    assert shown in printed(capsys)
    for ascii_only in (False, True):
        assert not obeyed(render_tree(done[0].result.tree, ascii_only=ascii_only))
    print_json({"text": text, "number": float("nan")})
    assert json.loads(printed(capsys)) == {"text": text, "number": None}


@pytest.mark.parametrize(
    "arguments",
    [
        ["search", "a", "-m", "/no/such/{evil}"],
        ["search", "a", "-s", "{evil}"],
        ["search", "a", "-o", "{evil}"],
        ["search", "a", "-o", "n={evil}"],
        ["search", "a", "--scorer", "{evil}"],
        ["search", "a", "--{evil}"],
        ["search", "a", "--dtype", "{evil}"],
        ["search", "--tasks", "/no/such/{evil}"],
        ["search", "a", "--save", "/dev/null/{evil}"],
        ["plan-budget", "-m", "/no/such/{evil}"],
        ["{evil}"],
    ],
)
def test_errors_are_a_line_of_text(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    evil = "\x1b[31m[/b]\u202e\x9b\nnext"
    assert run([argument.format(evil=evil) for argument in arguments]) in (1, 2)
    assert "[/b]" in error_line(printed(capsys))


def test_tasks_with_evil_names_are_solved(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], one_thread: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a file, with a model whose bytes are as wild as they come."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    write_tiny_gguf(tmp_path / "tiny.gguf")
    texts = [text for text in EVIL if not text.startswith("\ud800")]
    lines = [{"name": text, "prompt": f"Say {text}", "answer": text} for text in texts]
    (tmp_path / "tasks.jsonl").write_text("\n".join(map(json.dumps, lines)))
    arguments = ["-m", str(tmp_path / "tiny.gguf"), *SMALL, "--tasks", str(tmp_path / "tasks.jsonl")]
    assert run(["search", *arguments, "-s", "best_of_n", "-o", "n=2", "--temperature", "2"]) == 0
    assert "[/b]" in printed(capsys)
    assert run(["search", *arguments[:-2], "[/b]\x1b[31m", "-o", "n=2", "--temperature", "2"]) == 0
    assert "[/b]\\x1b[31m" in printed(capsys)


def test_a_terminal_of_few_characters_loses_nothing() -> None:
    """Where stdout is ASCII, what it does not have is escaped; so is what a traceback quotes."""
    code = """if True:
        from types import ModuleType
        import sys
        def run(arguments, imported):
            print("caf\\xe9")
            raise RuntimeError("\\x1b[31m")
        sys.modules["tts_decode.cli.app"] = app = ModuleType("app")
        app.run = run
        from tts_decode.cli import main
        main()
    """
    env = {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, check=False)
    assert done.stdout == b"caf\\xe9\n"
    assert done.stderr.splitlines()[-1] == b"RuntimeError: \\x1b[31m"
    assert done.returncode == 1
