"""`--save`: what was computed is kept whole, whatever ends the run, and one process at a time writes it."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from cli_commands import compare, last_error, search, search_tasks
from tts_decode.cli.errors import CommandError
from tts_decode.cli.saving import open_folder
from tts_decode.search import SearchResult, SearchRun

pytestmark = pytest.mark.usefixtures("cache")

SAVED = ["--limit", "3", "-s", "best_of_n", "-s", "rebase", "-o", "n=2"]


def test_saved_results_are_whole(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare(folder, *SAVED, "--save", str(tmp_path / "out"), "--json") == 0
    report = json.loads(capsys.readouterr().out)
    for row in report["strategies"]:
        header, *lines = (tmp_path / "out" / f"{row['strategy']}.jsonl").read_text().splitlines()
        assert json.loads(header)["settings"]["options"] == {"n": 2}
        saved = sorted(map(json.loads, lines), key=lambda line: line["index"])
        for line, outcome in zip(saved, row["outcomes"], strict=True):
            assert SearchResult.from_dict(line["search"]).answer == outcome["answer"]
            assert {name: line[name] for name in outcome} == outcome
        left = {path.name for path in (tmp_path / "out" / row["strategy"]).iterdir()}
        tables = ("searches", "nodes", "candidates", "memory") if find_spec("pyarrow") else ()
        assert left == {f"{name}.parquet" for name in tables}
    assert compare(folder, *SAVED, "--save", str(tmp_path / "out")) == 2
    assert "holds results of best_of_n already; give --resume" in last_error(capsys)


def test_resume_after_a_crash(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run ends in the middle of the second strategy, and of a line of its file."""
    out = tmp_path / "out"
    assert compare(folder, *SAVED, "--json") == 0
    whole = json.loads(capsys.readouterr().out)["strategies"]

    calls = 0

    class Crash(BaseException):
        pass

    async def crashes(run: SearchRun, *args: object) -> list[float]:
        nonlocal calls
        calls += 1
        if calls == 7:
            raise Crash
        return await score(run, *args)  # type: ignore[arg-type]

    score = SearchRun.score
    monkeypatch.setattr(SearchRun, "score", crashes)
    with pytest.raises(Crash):
        compare(folder, *SAVED, "--parallel", "1", "--save", str(out))
    monkeypatch.undo()
    file = out / "rebase.jsonl"
    assert list((out / "rebase").glob("*.journal"))
    with file.open("a") as stream:
        stream.write('{"index": 2, "ta')
    before = len(file.read_text().splitlines()) - 2  # header and what is left of a line

    capsys.readouterr()
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    monkeypatch.setenv("COLUMNS", "80")
    assert compare(folder, *SAVED, "--save", str(out), "--resume", "--json") == 0
    resumed = json.loads(capsys.readouterr().out)["strategies"]
    for ours, theirs in zip(resumed, whole, strict=True):
        assert [o["answer"] for o in ours["outcomes"]] == [o["answer"] for o in theirs["outcomes"]]
        tokens = [[o["generated_tokens"] for o in row["outcomes"]] for row in (ours, theirs)]
        assert tokens[0] == tokens[1]
    assert [row["searches"] for row in resumed] == [0, 3 - before]

    assert compare(folder, *SAVED, "--save", str(out), "--resume") == 0
    assert "3 of 3 were saved before" in capsys.readouterr().out
    assert compare(folder, *SAVED, "--seed", "1", "--save", str(out), "--resume") == 1
    assert "was written with sampling.seed=0, not 1;" in last_error(capsys)
    file.write_text(file.read_text().replace('"stats"', '"stat"'))
    assert compare(folder, *SAVED, "--save", str(out), "--resume") == 1
    assert "rebase.jsonl: line 2 is damaged: it does not agree with its checksum" in last_error(capsys)


def test_search_saves_and_goes_on(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second of two searches fails at its last score; the next run asks for that score alone."""
    assert search_tasks(folder, "--json") == 0
    whole = json.loads(capsys.readouterr().out)["results"]
    score, calls = SearchRun.score, 0

    async def fails(run: SearchRun, *arguments: Any) -> list[float]:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise ValueError("[/b] no score today")
        return await score(run, *arguments)

    monkeypatch.setattr(SearchRun, "score", fails)
    out = tmp_path / "out"
    assert search_tasks(folder, "--save", str(out)) == 0
    assert "failed: sky: ValueError: [/b] no score today" in capsys.readouterr().out
    assert [path.name for path in (out / "best_of_n").glob("*.journal")] == ["1.journal"]
    recorded = len((out / "best_of_n" / "1.journal").read_bytes().splitlines())

    monkeypatch.setattr(SearchRun, "score", score)
    steps = []
    step = SearchRun.step

    async def counted(run: SearchRun, *arguments: Any, **options: Any) -> Any:
        steps.append(run)
        return await step(run, *arguments, **options)

    monkeypatch.setattr(SearchRun, "step", counted)
    assert search_tasks(folder, "--save", str(out), "--resume", "--json") == 0
    again = json.loads(capsys.readouterr().out)
    assert again["cost"]["searches"] == 1
    assert recorded > 2
    assert len({id(run) for run in steps}) == 1
    for ours, theirs in zip(again["results"], whole, strict=True):
        assert [c["text"] for c in ours["search"]["candidates"]] == [
            c["text"] for c in theirs["search"]["candidates"]
        ]
    assert not list((out / "best_of_n").glob("*.journal"))
    assert search_tasks(folder, "--save", str(out)) == 2
    assert "holds results of best_of_n already; give --resume" in last_error(capsys)
    assert search_tasks(folder, "--save", str(out), "--resume", "--raw") == 1
    assert "was written with chat=True, not False" in last_error(capsys)


def test_one_prompt_is_saved_too(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["hello", "-s", "best_of_n", "-o", "n=2", "--save", str(tmp_path / "out")]
    assert search(folder, *arguments) == 0
    first = capsys.readouterr().out
    assert search(folder, *arguments, "--resume") == 0
    again = capsys.readouterr().out
    assert again.rpartition("\n\n")[0] == first.rpartition("\n\n")[0]
    assert "0 tokens in" in again


HOLDER = """
import sys
from pathlib import Path
from tts_decode.records.record_file import open_locked
lock = open_locked(Path(sys.argv[1]))
lock.write(b"process 1 \\x1b[31m on another machine")
print("held", flush=True)
sys.stdin.read()
"""


def test_a_folder_is_one_process_at_a_time(tmp_path: Path) -> None:
    """A process that was killed does not hold it any more."""
    out = tmp_path / "out"
    out.mkdir()
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, out / ".lock"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with (
        pytest.raises(
            CommandError, match=r"out is in use by process 1 .* on another machine; wait until it ends, or"
        ),
        open_folder(out, ["ets"], resume=True),
    ):
        pass
    holder.kill()
    holder.communicate()
    with (
        open_folder(out, ["ets"], resume=True),
        pytest.raises(CommandError, match=f"is in use by process {os.getpid()} on"),
        open_folder(out, ["rebase"], resume=True),
    ):
        pass


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda out: out.write_text(""), "out is a file, expected a folder"),
        (lambda out: out.symlink_to(out), "out cannot be used: File exists"),
        (
            lambda out: (out / "best_of_n.jsonl").mkdir(parents=True),
            "best_of_n.jsonl: cannot be used: Is a directory",
        ),
        (
            lambda out: [out.mkdir(), (out / "best_of_n").write_text("")],
            "best_of_n cannot be used: File exists",
        ),
        (lambda out: (out / ".lock").mkdir(parents=True), ".lock cannot be used: Is a directory"),
        (lambda out: [out.mkdir(), (out / "best_of_n.jsonl").write_text("mine\n")], "is left as it is"),
    ],
)
def test_what_is_in_the_way_is_named(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    make: Callable[[Path], object],
    message: str,
) -> None:
    make(tmp_path / "out")
    assert search_tasks(folder, "--save", str(tmp_path / "out"), "--resume") in (1, 2)
    assert message in last_error(capsys)


def test_a_folder_named_like_a_journal_fails_its_search_only(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out" / "best_of_n" / "1.journal").mkdir(parents=True)
    assert search_tasks(folder, "--save", str(tmp_path / "out")) == 0
    out = capsys.readouterr().out
    assert "failed: sky: JournalError: " in out
    assert "1.journal: cannot be used: Is a directory" in out
    (tmp_path / "out" / "best_of_n" / "1.journal").rmdir()
    assert search_tasks(folder, "--save", str(tmp_path / "out"), "--resume") == 0
    assert "failed" not in capsys.readouterr().out


def test_a_full_disk_is_a_line_and_loses_nothing(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is full from the second search on, then there is space again."""
    out, write, left = tmp_path / "out", os.pwrite, [12]

    def fills(handle: int, data: bytes, at: int) -> int:
        left[0] -= 1
        if left[0] < 0:
            write(handle, data[: len(data) // 2], at)
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(handle, data, at)

    monkeypatch.setattr(os, "pwrite", fills)
    assert search_tasks(folder, "--save", str(out)) == 1
    error = last_error(capsys)
    assert error.startswith("tts-decode: --save: ")
    assert "No space left on device; free some space and resume: what was written before is whole" in error
    held = len((out / "best_of_n.jsonl").read_text().splitlines()) - 1
    left[0] = 1000
    assert search_tasks(folder, "--save", str(out), "--resume", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["cost"]["searches"] == 2 - held
    assert all(result["answer"] is not None for result in report["results"])


@pytest.mark.parametrize("code", [errno.EACCES, errno.ENAMETOOLONG, errno.EROFS])
def test_a_folder_that_cannot_be_made_is_a_line(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    code: int,
) -> None:
    def refused(path: Path, *arguments: object, **options: object) -> None:
        raise OSError(code, os.strerror(code), str(path))

    for name in ("exists", "mkdir"):
        with monkeypatch.context() as patch:
            patch.setattr(Path, name, refused)  # by hand: for root everything is allowed
            assert search(folder, "a", "--save", str(tmp_path / "out")) == 1
        assert f"out cannot be used: {os.strerror(code)}; see to it, or give another folder" in last_error(
            capsys
        )
