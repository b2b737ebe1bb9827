"""`tts-decode sweep --ray`: the files and figures of a sweep in one process, also where an actor dies."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from busy_nodes import in_use
from cli_commands import SMALL, default_signals, last_error, write_files
from tts_decode.cli.app import run
from tts_decode.cli.display import Display
from tts_decode.cli.progress import Progress
from tts_decode.cli.saving import read_saved
from tts_decode.search import Journal, SearchRun

from benches.local_cluster import LocalCluster

GRID = [
    "--limit",
    "3",
    "-s",
    "best_of_n",
    "-s",
    "rebase",
    "--widths",
    "2",
    "--seeds",
    "0,7",
    "--parallel",
    "2",
]
CELLS = [f"{name}-width2-seed{seed}" for name in ("best_of_n", "rebase") for seed in (0, 7)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cluster")
    write_files(folder)
    return folder


@pytest.fixture(autouse=True)
def cache(folder: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))


def sweep(folder: Path, out: Path, *arguments: str) -> int:
    return run(["sweep", "-m", str(folder / "tiny.gguf"), *SMALL, *GRID, "--save", str(out), *arguments])


def texts(out: Path) -> dict[str, list[list[str]]]:
    """Returns the texts of the tree by cell and problem. Each problem occurs once."""
    found = {}
    for cell in CELLS:
        lines = [json.loads(line) for line in (out / f"{cell}.jsonl").read_text().splitlines()[1:]]
        assert sorted(line["index"] for line in lines) == [0, 1, 2]
        saved = read_saved(out / f"{cell}.jsonl")
        found[cell] = [[node.text for node in search.result.tree] for search in saved if search.result]
    return found


def test_a_sweep_on_a_cluster_is_the_sweep(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], cluster: LocalCluster
) -> None:
    """An actor is killed when the first search has ended."""
    out = tmp_path / "out"
    before = cluster.actors()

    def kill_one() -> None:
        while not any(len(file.read_text().splitlines()) > 1 for file in out.glob("*.jsonl")):
            time.sleep(0.02)
        os.kill((cluster.actors() - before).pop(), signal.SIGKILL)

    killer = threading.Thread(target=kill_one, daemon=True)
    killer.start()
    assert sweep(folder, out, "--ray", cluster.address, "--json") == 0
    killer.join(10)
    report: dict[str, Any] = json.loads(capfd.readouterr().out)
    assert len(report["searches"]) == 12
    assert all(search["eflops"] > 0 for search in report["searches"])
    assert not list(out.glob("*/*.journal"))
    assert (report["model"], report["threads"]) == (str(folder / "tiny.gguf"), 1)
    assert sweep(folder, tmp_path / "alone") == 0
    assert texts(out) == texts(tmp_path / "alone")
    assert {path.name for path in out.iterdir()} == {path.name for path in (tmp_path / "alone").iterdir()}


def test_a_sweep_that_broke_off_goes_on_on_the_cluster(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cluster: LocalCluster
) -> None:
    """Begun in one process, which leaves a journal: an actor continues from it."""

    class Crash(BaseException):
        pass

    score, calls = SearchRun.score, 0

    async def crashes(search: SearchRun, *arguments: Any) -> list[float]:
        nonlocal calls
        calls += 1
        if calls == 9:
            raise Crash
        return await score(search, *arguments)

    out = tmp_path / "out"
    monkeypatch.setattr(SearchRun, "score", crashes)
    with pytest.raises(Crash):
        sweep(folder, out)
    monkeypatch.setattr(SearchRun, "score", score)
    assert list(out.glob("*/*.journal"))
    assert sweep(folder, out, "--resume", "--ray", cluster.address) == 0
    assert not list(out.glob("*/*.journal"))
    assert sweep(folder, tmp_path / "alone") == 0
    assert texts(out) == texts(tmp_path / "alone")


def test_a_sweep_says_who_is_missing(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], cluster: LocalCluster
) -> None:
    """No actor starts on the second node: the sweep begins and ends with the other one."""
    with in_use(cluster, 1):
        assert sweep(folder, tmp_path / "out", "--ray", cluster.address, "--json") == 0
    lines = capfd.readouterr().err.splitlines()
    waits = [line for line in lines if re.match(r"waiting \d+ s for the first of 2 actors: node ", line)]
    assert len(waits) == 1, "a log is told once"
    assert "1 of 2 actors have opened it, and the sweep begins" in lines
    progress = [json.loads(line) for line in lines if line.startswith("{")]
    assert [(one["done"], one["actors"], one["actors_wanted"]) for one in progress] == [
        (done, 1, 2) for done in range(1, 13)
    ]


def test_the_line_says_who_is_missing_until_all_are_there() -> None:
    progress = Progress(Display(), 12, 24, as_json=False)
    progress.begin("rebase, width 2", 2)
    assert "actors" not in progress.line()
    assert "actors" not in progress.told()
    progress.joined(1, 2)
    assert progress.line().startswith("0/12 · solved 0 · rebase, width 2 · 1 of 2 actors · ")
    progress.joined(2, 2)
    assert "actors" not in progress.line()
    assert progress.told().items() >= {"total": 12, "actors": 2, "actors_wanted": 2}.items()


def test_a_sweep_ends_with_ctrl_c(folder: Path, tmp_path: Path, cluster: LocalCluster) -> None:
    """In order, with its journals; no actor is left, and it continues."""
    out = tmp_path / "out"
    before = cluster.actors()
    long = ["--max-tokens", "400", "--max-step-tokens", "4", "--budget-tokens", "100000"]
    arguments = ["sweep", "-m", str(folder / "tiny.gguf"), *SMALL, *long, "--save", str(out), "--limit", "2"]
    arguments += ["-s", "rebase", "-n", "64", "--stop", "never"]
    arguments += ["--seeds", "0,1,2,3,4,5,6,7"]  # each search takes seconds, and its journal grows
    command = [sys.executable, "-m", "tts_decode", *arguments, "--ray", cluster.address]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=default_signals)
    ends = time.monotonic() + 240
    while not any(file.stat().st_size > 5000 for file in out.glob("*/*.journal")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < ends
        time.sleep(0.05)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert told.splitlines()[-1] == "tts-decode: interrupted"
    assert time.monotonic() - began < 30
    for journal in out.glob("*/*.journal"):
        Journal(journal, resume=True).close()
    while cluster.actors() - before:
        assert time.monotonic() < ends
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--ray-actors", "2"], 2, "--ray-actors: got 2 without --ray, of which it says something"),
        (
            ["--ray-start-seconds", "9"],
            2,
            "--ray-start-seconds: got 9 without --ray, of which it says something",
        ),
        (["--ray", "auto", "--ray-cpus", "0"], 2, "--ray-cpus: got 0, expected at least 1"),
    ],
)
def test_wrong_options_are_named(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    assert sweep(folder, tmp_path / "out", *arguments) == code
    assert message in last_error(capsys)


def test_ray_is_missing(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert sweep(folder, tmp_path / "out", "--ray") == 1
    assert "ray: not installed; run: pip install 'tts-kernels[ray]'" in last_error(capsys)


def test_an_address_that_does_not_answer(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = pytest.importorskip("ray", reason="needs the package ray: pip install '.[ray]'")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    assert sweep(folder, tmp_path / "out", "--ray", "127.0.0.1:1") == 1
    assert "--ray: 127.0.0.1:1 does not answer (" in last_error(capsys)
