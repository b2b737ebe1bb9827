"""`--help` and `--version` need no torch; the list of subcommands says what they say; versions agree."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from importlib.metadata import entry_points, version

import pytest
import tts_decode
from tts_decode.cli.app import COMMANDS, run

import tts_kernels

VERSIONS = [
    f"tts-decode {version('tts-kernels')}",
    f"tts-kernels {version('tts-kernels')}",
    f"torch {version('torch')}",
    f"transformers {version('transformers')}",
]
PROBE = """if True:
    import atexit, json, sys
    def tell():
        print(json.dumps(sorted({"torch", "transformers", "numpy", "scipy"} & set(sys.modules))))
    atexit.register(tell)
    from tts_decode.cli import main
    main()
"""


SUBCOMMANDS = [
    *([name] for name in COMMANDS),
    ["bench", "attention"],
    ["bench", "decode"],
    ["bench", "search"],
]


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["sweep", "--help"], ["search", "a", "--help"]]
)
def test_answers_at_once(arguments: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROBE, *arguments], capture_output=True, text=True, check=True
    )
    *shown, imported = done.stdout.splitlines()
    assert json.loads(imported) == []
    if arguments == ["--version"]:
        assert shown == VERSIONS
    elif arguments == ["--help"]:
        assert all(any(f"{name} " in line for line in shown) for name in COMMANDS)
    else:
        assert any("--sparse-" in line for line in shown)


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("arguments", SUBCOMMANDS, ids=" ".join)
def test_help_without_the_code_is_that_of_the_command(
    arguments: list[str], columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A second --help makes the command itself tell its help."""
    monkeypatch.setenv("COLUMNS", str(columns))
    assert run([*arguments, "--help"]) == 0
    told = capsys.readouterr().out
    assert run([*arguments, "--help", "--help"]) == 0
    assert told == capsys.readouterr().out


def test_help_as_the_value_of_an_option_runs_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["search", "a", "--json-schema", "--help"]) == 2
    assert "--help" in capsys.readouterr().err


@pytest.mark.parametrize(("given", "expected"), [(None, "1000"), ("7", "7")])
def test_idle_threads_sleep_soon(given: str | None, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """libgomp reads the variable when it is loaded, with torch."""
    probe = """if True:
        import os, sys
        class Finder:
            def find_spec(self, name, *_):
                if name == "torch":
                    print("before torch:", os.environ.get("GOMP_SPINCOUNT"))
        sys.meta_path.insert(0, Finder())
        from tts_decode.cli import main
        main()
    """
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    if given is not None:
        monkeypatch.setenv("GOMP_SPINCOUNT", given)
    done = subprocess.run(
        [sys.executable, "-c", probe, "strategies"], capture_output=True, text=True, check=True
    )
    assert f"before torch: {expected}\n" in done.stdout


def test_strategies_are_listed_without_transformers() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROBE, "strategies"], capture_output=True, text=True, check=True
    )
    assert "transformers" not in json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", COMMANDS)
def test_the_list_says_what_each_command_says(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([name, "--help"]) == 0
    shown = " ".join(word for word in capsys.readouterr().out.split() if word != "│")
    assert COMMANDS[name].summary in shown


@pytest.mark.parametrize("columns", [72, 80, 120])
@pytest.mark.parametrize("arguments", [*([name] for name in COMMANDS), ["bench", "attention"]])
def test_help_breaks_lines_where_the_terminal_ends(
    arguments: list[str], columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Within a paragraph above the boxes the next word would not have fitted."""
    monkeypatch.setenv("COLUMNS", str(columns))
    assert run([*arguments, "--help"]) == 0
    above = capsys.readouterr().out.partition("╭")[0].splitlines()
    for line, following in itertools.pairwise(above):
        if line.strip() and following.strip():
            assert len(line.rstrip()) + 1 + len(following.split()[0]) > columns - 2, line


@pytest.mark.parametrize("arguments", [*([name] for name in COMMANDS), ["bench", "decode"]])
def test_help_is_read_at_80_columns(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Examples are whole lines, which can be copied; nothing is cut; types are no noise beside flags."""
    monkeypatch.setenv("COLUMNS", "80")
    assert run([*arguments, "--help"]) == 0
    text = capsys.readouterr().out
    lines = [line.rstrip() for line in text.splitlines()]
    examples = [i for i, line in enumerate(lines) if line.startswith("   tts-decode ")]
    assert examples or arguments == ["bench"]  # whose subcommands have them
    assert all(not lines[i + 1] for i in examples)
    assert max(map(len, lines)) <= 80
    assert "…" not in text
    assert not any(noise in text for noise in ("<bool>", "<str>", "<int>", "<float>", "<path>", "list["))


def test_most_options_are_in_a_group(capsys: pytest.CaptureFixture[str]) -> None:
    """Of the three that share theirs: beside --help none is without."""
    for name in ("search", "compare", "sweep"):
        assert run([name, "--help"]) == 0
        box = capsys.readouterr().out.partition("─ Options ─")[2].partition("╰")[0]
        assert [word for word in box.split() if word.startswith("--")] == ["--help"]


def test_runs_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tts_decode", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == VERSIONS


def test_one_version() -> None:
    assert tts_decode.__version__ == tts_kernels.__version__ == version("tts-kernels")
    scripts = entry_points(group="console_scripts", name="tts-decode")
    assert {script.value for script in scripts} == {"tts_decode.cli:main"}
