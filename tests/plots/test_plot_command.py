"""`tts-decode plot`: files that are what they say, with all that a figure needs to be read alone; errors."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from cli_commands import last_error
from pages import SHEEP
from saved_runs import save_run, settings
from tts_decode.cli.app import run
from tts_decode.plots import MEASURES

pytest.importorskip("matplotlib")

TREE = {key: value for key, value in json.loads(SHEEP.read_text()).items() if key != "crc32"}
FOUR = ([True, False, True, False], [10, 20, 30, 40])


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """best_of_n and ets at two widths, ets sparse too; the last of ets is under way."""
    root = tmp_path / "runs"
    for n in (2, 8):
        tokens = [n * count for count in FOUR[1]]
        save_run(root / f"n{n}" / "best_of_n.jsonl", settings(n=n), FOUR[0], tokens, search=TREE)
        done = 4 if n == 2 else 3
        save_run(root / f"n{n}" / "ets.jsonl", settings("ets", n), FOUR[0][:done], tokens[:done], search=TREE)
        sparse = settings("ets", n, sparse={"budget": 0.125})
        save_run(root / f"n{n}" / "ets-sparse.jsonl", sparse, FOUR[0], tokens, search=TREE)
    (root / "problems.jsonl").write_text('{"prompt": "not ours"}\n')
    return root


def texts(file: Path) -> str:
    """All that an SVG says."""
    root = ElementTree.parse(file).getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    return " ".join(element.text or "" for element in root.iter("{http://www.w3.org/2000/svg}text"))


@pytest.mark.parametrize(
    ("x", "axis"),
    [
        ("tokens", "tokens generated per problem"),
        ("seconds", "seconds per search"),
        ("eflops", "eTFLOP per problem"),
        ("mean-kv", "MiB of KV"),
        ("peak-kv", "MiB of KV"),
    ],
)
def test_a_figure_can_be_read_alone(
    runs: Path, capsys: pytest.CaptureFixture[str], x: str, axis: str
) -> None:
    assert run(["plot", str(runs), "--x", x, "--pareto"]) == 0
    file = runs / f"plot-{x}.svg"
    assert capsys.readouterr().out.strip() == str(file)
    told = texts(file)
    for part in (
        *(axis, f"Accuracy against {MEASURES[x].title}", "problems solved", "best_of_n", "ets", "n=2"),
        *("tiny float32", "Abacus 9, 2 cores", "threads: 1", "n = 4 problems", "2026-11-29"),
        *("tts-kernels 0.1.0", "ets, sparse 1/8", "sparse less dense at equal cost"),
        *("Hollow: unfinished (ets 3 of 4)", "Pareto front"),
    ):
        assert part in told
    assert file.stat().st_size < 100_000


def test_a_png_and_both_themes(runs: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.png"
    assert run(["plot", str(runs / "n2"), str(runs / "n8"), "--theme", "both", "--out", str(out)]) == 0
    pictures = [(tmp_path / f"a-{theme}.png").read_bytes() for theme in ("light", "dark")]
    assert pictures[0] != pictures[1]
    for picture in pictures:
        assert picture.startswith(b"\x89PNG\r\n\x1a\n")
        assert struct.unpack(">I", picture[16:20]) == (1400,)
    assert not out.exists()


def test_the_same_runs_give_the_same_svg(runs: Path) -> None:
    made = []
    for _ in range(2):
        assert run(["plot", str(runs), "--theme", "dark"]) == 0
        made.append((runs / "plot-tokens.svg").read_bytes())
    assert made[0] == made[1]


def test_kv_over_time(runs: Path) -> None:
    assert run(["plot", str(runs / "n2" / "ets.jsonl"), "--x", "time", "--problem", "2"]) == 0
    told = texts(runs / "n2" / "plot-time.svg")
    for part in ("KV held by ets, n=2, problem 2 (t2)", "resident", "unshared", "seconds since", "MiB of KV"):
        assert part in told
    assert "1 of 4 problems" in told
    assert "n = 4" not in told
    assert run(["plot", str(runs), "--x", "time", "-s", "ets"]) == 0
    told = texts(runs / "plot-time.svg")
    assert all(part in told for part in ("problem 0", "ets, n=2", "ets, n=8", "ets, sparse 1/8, n=8"))


def test_names_are_no_markup(tmp_path: Path) -> None:
    """Neither XML nor matplotlib's formulas."""
    about = settings(model="<b>&$x_1$\x1b") | {"strategy": "my$_strategy$<i>"}
    save_run(tmp_path / "a.jsonl", about, *FOUR)
    assert run(["plot", str(tmp_path)]) == 0
    assert all(part in texts(tmp_path / "plot-tokens.svg") for part in ("<b>&$x_1$", "my$_strategy$<i>"))


def test_a_file_of_an_older_version(tmp_path: Path) -> None:
    """It does not tell when and where it ran."""
    save_run(tmp_path / "a.jsonl", settings(), *FOUR, made=None)
    assert run(["plot", str(tmp_path)]) == 0
    assert "tiny float32 · cpu, threads: 1" in texts(tmp_path / "plot-tokens.svg")


def test_a_run_without_an_ended_search_is_left_out(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_run(runs / "n16" / "ets.jsonl", settings("ets", 16), [], [])
    assert run(["plot", str(runs)]) == 0
    assert last_error(capsys).endswith("ets.jsonl: no search has ended yet, left out")
    assert run(["plot", str(runs / "n16")]) == 1
    assert "RUN: no search has ended yet; wait" in last_error(capsys)


def test_a_setting_that_failed_is_left_out_and_named(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On stderr and in the figure, which has the others."""
    failed = save_run(runs / "n3" / "ets.jsonl", settings("ets", 3), *FOUR, failed=(0, 1, 2, 3))
    for x in ("tokens", "time"):
        assert run(["plot", str(runs), "--x", x, "-s", "ets"]) == 0
        assert last_error(capsys) == "tts-decode: ets, n=3: every search failed, left out"
        told = texts(runs / f"plot-{x}.svg")
        assert "Left out, as every search failed: ets, n=3." in told
        assert "ets, sparse 1/8" in told
    assert run(["plot", str(failed)]) == 1
    assert "RUN: every search failed (ets, n=3); there is nothing to draw" in last_error(capsys)


def test_kv_of_several_seeds(tmp_path: Path) -> None:
    for seed in (5, 6):
        save_run(tmp_path / f"seed{seed}.jsonl", settings(seed=seed), *FOUR, search=TREE)
    assert run(["plot", str(tmp_path), "--x", "time"]) == 0
    told = texts(tmp_path / "plot-time.svg")
    assert all(f"best_of_n, n=4, seed={seed}" in " ".join(told.split()) for seed in (5, 6))


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["{runs}", "--out", "a.pdf"], 2, "--out: got a.pdf, expected a .svg or .png file"),
        (["{runs}", "--out", "{runs}/no/a.svg"], 1, "cannot be written: No such file"),
        (["{runs}/no"], 2, "which does not exist; expected a folder of --save"),
        (["{runs}/n2", "{empty}"], 1, "empty: holds no NAME.jsonl of --save"),
        (["{runs}", "-s", "beam"], 2, "--strategy: got 'beam', but the runs have best_of_n, ets"),
        (["{runs}", "--problem", "1"], 2, "--problem: only with --x time"),
        (["{runs}", "--x", "time", "--pareto"], 2, "--pareto: not with --x time"),
        (["{runs}", "--x", "time", "--problem", "3"], 2, "--problem: got 3, of which"),
        (["{runs}", "--x", "watts"], 2, "Invalid value for '--x'"),
        ([], 2, "Missing argument 'RUN...'"),
    ],
)
def test_errors(
    runs: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, message: str
) -> None:
    empty = runs.parent / "empty"
    empty.mkdir()
    assert run(["plot", *(a.format(runs=runs, empty=empty) for a in arguments)]) == code
    assert message in last_error(capsys)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"model": "large"}, "different models: tiny ("),
        ({"problems": 5}, "different problems: 4 problems ("),
        ({"problems_crc32": 8}, "different problems: 4 problems ("),
        ({}, "have the same settings and seed; give one of them"),
    ],
)
def test_runs_that_do_not_go_together(
    runs: Path, capsys: pytest.CaptureFixture[str], other: dict[str, Any], message: str
) -> None:
    save_run(runs / "other" / "best_of_n.jsonl", settings(n=2) | other, *FOUR)
    before = sorted(runs.rglob("*"))
    assert run(["plot", str(runs)]) == 1
    assert message in last_error(capsys)
    assert sorted(runs.rglob("*")) == before


@pytest.mark.parametrize(("name", "value"), [("model", [1]), ("strategy", {}), ("problems", "4")])
def test_settings_of_another_type(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, value: object
) -> None:
    save_run(tmp_path / "a.jsonl", settings() | {name: value}, *FOUR)
    assert run(["plot", str(tmp_path)]) == 1
    assert f"a.jsonl: line 1 is damaged: it does not tell what ran ({name}: got " in last_error(capsys)


def test_runs_without_kv(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_run(tmp_path / "a.jsonl", settings(), FOUR[0], [0] * 4)
    assert run(["plot", str(tmp_path), "--x", "mean-kv"]) == 1
    assert "RUN: no run tells its mean KV memory; choose another --x" in last_error(capsys)


def test_too_many_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(9):
        save_run(tmp_path / f"{number}.jsonl", settings(f"own{number}"), *FOUR)
    assert run(["plot", str(tmp_path)]) == 1
    assert "9 lines (own0; own1; own2; ...), but a figure tells 8 apart; give fewer" in last_error(capsys)


def test_a_damaged_file(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = runs / "n2" / "ets.jsonl"
    file.write_text(file.read_text().replace('"generated_tokens":40', '"generated_tokens":41'))
    assert run(["plot", str(runs)]) == 1
    assert "ets.jsonl: line 3 is damaged" in last_error(capsys)
