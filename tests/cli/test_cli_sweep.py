"""`tts-decode sweep`: its folder, tables and JSON, resumption, cells that fail, wrong options."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cli_commands import SMALL, error_line, last_error
from tts_decode.cli.app import run
from tts_decode.cli.saving import read_saved
from tts_decode.search import SearchRun
from tts_decode.sweeps import read_sweep

pytestmark = pytest.mark.usefixtures("cache")

GRID = ["--limit", "2", "-s", "best_of_n", "-s", "rebase", "--widths", "2,3", "--seeds", "0,7"]
CELLS = [f"{name}-width{n}-seed{s}" for name in ("best_of_n", "rebase") for n in (2, 3) for s in (0, 7)]


def sweep(folder: Path, out: Path, *arguments: str) -> int:
    return run(["sweep", "-m", str(folder / "tiny.gguf"), *SMALL, "--save", str(out), *arguments])


def told(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    return report


def timeless(report: dict[str, Any]) -> list[dict[str, Any]]:
    """The searches without what depends on the machine's speed and on what shared their forwards."""
    of_time = ("seconds", "mean_kv_bytes", "eflops")
    return [{k: v for k, v in search.items() if k not in of_time} for search in report["searches"]]


def test_the_folder_of_a_sweep(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert sweep(folder, out, *GRID, "--target", "1", "--json") == 0
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    assert list(dict.fromkeys(search["cell"] for search in report["searches"])) == CELLS
    grid = json.loads((out / "sweep.json").read_text())
    assert [cell["name"] for cell in grid["cells"]] == CELLS
    assert grid["versions"].keys() >= {"torch", "tts-kernels"}
    for cell in CELLS:
        saved = read_saved(out / f"{cell}.jsonl")
        ours = [search for search in report["searches"] if search["cell"] == cell]
        assert [search.problem.solved for search in saved] == [search["solved"] for search in ours]
        settings = saved[0].settings
        name, width, seed = cell.split("-")
        assert settings["strategy"] == name
        assert f"width{settings['width']}" == f"width{settings['options']['n']}" == width
        assert f"seed{settings['sampling']['seed']}" == seed
    assert len(read_sweep(out)) == len(report["searches"]) == 16
    names = [e["name"] for e in report["estimates"] if (e["strategy"], e["width"]) == ("rebase", 3)]
    rules = ("pass", "maj", "weighted", "naive")
    assert names == ["solved", *(f"{rule}@{k}" for rule in rules for k in (1, 2, 3))]
    assert {e["searches"] for e in report["estimates"]} == {4}
    assert {budget["unit"] for budget in report["budgets"]} >= {"tokens", "seconds", "peak_kv_bytes"}
    lines = [json.loads(line) for line in captured.err.splitlines() if line.startswith("{")]
    assert [line["done"] for line in lines] == list(range(1, 17))
    assert lines[-1]["seconds_left"] == 0
    assert lines[-1]["solved"] == sum(search["solved"] for search in report["searches"])

    assert sweep(folder, out, *GRID) == 2
    assert "holds results of best_of_n-width2-seed0 already; give --resume" in last_error(capsys)
    assert sweep(folder, out, *GRID[:-1], "1") == 2
    assert "holds a sweep already; give --resume" in last_error(capsys)
    assert sweep(folder, out, *GRID[:-1], "7", "--resume") == 2
    assert "holds best_of_n-width2-seed0, which is not in this grid" in last_error(capsys)


def test_a_sweep_goes_on_after_a_crash_and_is_extended(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends within a search of the second setting; what comes is what an undisturbed sweep finds."""
    assert sweep(folder, tmp_path / "whole", *GRID, "--parallel", "1", "--json") == 0
    whole = told(capsys)

    class Crash(BaseException):
        pass

    score, calls = SearchRun.score, 0

    async def crashes(search: SearchRun, *arguments: Any) -> list[float]:
        nonlocal calls
        calls += 1
        if calls == 15:  # 8 are of the first setting, 3 of each search of the second
            raise Crash
        return await score(search, *arguments)

    out = tmp_path / "out"
    monkeypatch.setattr(SearchRun, "score", crashes)
    with pytest.raises(Crash):
        sweep(folder, out, *GRID, "--parallel", "1")
    monkeypatch.setattr(SearchRun, "score", score)
    assert len(list(out.glob("*/*.journal"))) == 1
    capsys.readouterr()

    assert sweep(folder, out, *GRID, "--parallel", "1", "--resume", "--json") == 0
    resumed = told(capsys)
    assert timeless(resumed) == timeless(whole)
    assert values(resumed) == values(whole)
    assert not list(out.glob("*/*.journal"))

    monkeypatch.setattr(SearchRun, "score", None)  # nothing is searched again
    assert sweep(folder, out, *GRID, "--resume", "--json") == 0
    assert timeless(told(capsys)) == timeless(whole)
    monkeypatch.setattr(SearchRun, "score", score)
    assert sweep(folder, out, *GRID[:-1], "0,7,8", "--resume", "--json") == 0
    assert len(told(capsys)["searches"]) == 24
    assert len(json.loads((out / "sweep.json").read_text())["cells"]) == 12


def values(report: dict[str, Any]) -> list[tuple[str, Any]]:
    return [(e["name"], e["interval"]) for e in report["estimates"]]


def test_cells_that_fail_do_not_end_the_sweep(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = ["--limit", "2", "-s", "beam_search", "-s", "best_of_n", "--widths", "2,4", "--target", "1"]
    assert sweep(folder, out, *arguments) == 0
    printed = capsys.readouterr().out
    assert "beam_search 2: 2 of 2 failed, first sum/0: ValueError: beam_width: got 4" in printed
    assert "100% solved takes" in printed
    assert max(len(line) for line in printed.splitlines() if "failed, first" not in line) <= 80

    file = out / "best_of_n-width2-seed0.jsonl"
    file.write_text(file.read_text().replace('"stats"', '"stat"'))
    assert sweep(folder, out, *arguments, "--resume", "--json") == 1
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    assert report["failed"].keys() == {"best_of_n-width2-seed0"}
    assert "line 2 is damaged" in report["failed"]["best_of_n-width2-seed0"]
    assert {s["cell"] for s in report["searches"]} >= {"best_of_n-width4-seed0"}
    assert "1 of 4 cells could not be run, first best_of_n-width2-seed0: " in error_line(captured.err)


def test_a_sweep_of_which_all_fails_is_an_error(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep(folder, tmp_path, "--limit", "1", "-s", "beam_search", "--widths", "3") == 2
    assert "--option beam_width: got 4, expected a divisor of n = 3" in last_error(capsys)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--widths", "4,x"], "--widths: got '4,x', expected whole numbers with commas between"),
        (["--widths", "0"], "--widths: got 0, expected at least 1"),
        (["--widths", "4,1000000000"], "--widths: got 1000000000, expected at most 100,000"),
        (["--widths", "4,4"], "--widths: got '4,4', which has a number twice"),
        (["--seeds", "-1"], "--seeds: got '-1', expected whole numbers with commas between"),
        (["--target", "50"], "--target: got 50.0, expected a share of the problems, above 0 and at most 1"),
        (["-o", "n=8"], "--option: got n=8 for best_of_n, which --widths sets"),
        (["-s", "ets", "-s", "ets"], "--strategy: the same strategy is given twice"),
        (["--parallel", "0"], "--parallel: got 0, expected at least 1"),
        *(
            ([option, str(10**20), "--ray"], f"{option}: got {10**20}, expected at most 9223372036854775807")
            for option in ("--parallel", "--ray-actors", "--ray-cpus", "--ray-start-seconds")
        ),
        (["--ray", "--kv-mib", "0"], "--kv-mib: got 0, expected at least 1"),
        (["--ray", "--kv-offload-mib", str(10**20)], f"--kv-offload-mib: got {10**20}, expected at most 879"),
    ],
)
def test_wrong_options_are_named(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert sweep(folder, tmp_path / "out", *arguments) == 2
    assert message in last_error(capsys)
    assert not (tmp_path / "out").exists()
