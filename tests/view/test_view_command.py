"""`tts-decode view`: which searches it takes, where the page goes, errors in a line, and the server."""

from __future__ import annotations

import http.client
import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_commands import error_line
from pages import SHEEP, Elements
from tts_decode.cli.app import run
from tts_decode.records.record_file import RecordFile
from tts_decode.search import SearchResult


def save(folder: Path, name: str, sheep: SearchResult, indices: tuple[int, ...] = (0, 1, 2)) -> Path:
    """A file as `--save` writes it; the search of index 1 failed."""
    folder.mkdir(exist_ok=True)
    file = RecordFile(folder / f"{name}.jsonl", "tts-decode/saved", 2, resume=True, error=ValueError)
    file.write({"settings": {"model": "tiny", "strategy": name}})
    for index in indices:
        told = {"task": f"t{index}", "prompt": f"Question {index}?", "expected": "24", "solved": index == 0}
        failed = index == 1
        about = {"index": index, **told, "error": "ValueError: no" if failed else None, "eflops": 1.0}
        file.write(about | {"search": None if failed else sheep.to_dict()})
    file.close()
    return folder


def listed(page: Path) -> list[dict[str, Any]]:
    found = Elements(page.read_text(encoding="utf-8"))
    searches: list[dict[str, Any]] = json.loads(found.scripts["index"])["searches"]
    return searches


def last_error(capsys: pytest.CaptureFixture[str]) -> str:
    return error_line(capsys.readouterr().err)


def test_a_folder_of_results(tmp_path: Path, sheep: SearchResult, capsys: pytest.CaptureFixture[str]) -> None:
    folder = save(save(tmp_path / "run", "ets", sheep, (2, 0, 1)), "rebase-sparse", sheep)
    (folder / "problems.jsonl").write_text('{"prompt": "not ours"}\n')
    assert run(["view", str(folder), "--no-open"]) == 0
    assert re.search(r"view\.html: 4 searches, [\d.]+ MiB$", capsys.readouterr().out.replace("\n", ""))
    found = listed(folder / "view.html")
    assert [(s["strategy"], s["index"], s["block"]) for s in found] == [
        *(("ets", 0, 0), ("ets", 1, None), ("ets", 2, 1)),
        *(("rebase-sparse", 0, 2), ("rebase-sparse", 1, None), ("rebase-sparse", 2, 3)),
    ]
    assert found[0]["prompt"] == "Question 0?"
    assert (found[0]["solved"], found[1]["error"]) == (True, "ValueError: no")
    scripts = Elements((folder / "view.html").read_text(encoding="utf-8")).scripts
    assert json.loads(scripts["search-3"]) == sheep.to_dict()
    assert json.loads(scripts["index"])["settings"]["ets"] == {"model": "tiny", "strategy": "ets"}


def test_problems_and_strategies_are_chosen(tmp_path: Path, sheep: SearchResult) -> None:
    folder, out = save(save(tmp_path / "run", "ets", sheep), "rebase", sheep), tmp_path / "p.html"
    assert run(["view", str(folder), "-s", "rebase", "-p", "2", "-p", "0", "--out", str(out)]) == 0
    assert [(s["strategy"], s["index"]) for s in listed(out)] == [("rebase", 0), ("rebase", 2)]
    assert not (folder / "view.html").exists()


def test_one_result(tmp_path: Path, sheep: SearchResult) -> None:
    file = tmp_path / "r.json"
    file.write_bytes(SHEEP.read_bytes())
    assert run(["view", str(file), "--no-open"]) == 0
    (found,) = listed(tmp_path / "r.html")
    assert (found["strategy"], found["prompt"]) == ("ets", sheep.tree[0].question)


def test_a_run_under_way_is_left_as_it_is(tmp_path: Path, sheep: SearchResult) -> None:
    """The last line is not whole yet, and another process has the file."""
    folder = save(tmp_path / "run", "ets", sheep)
    file = folder / "ets.jsonl"
    writing = RecordFile(file, "tts-decode/saved", 2, resume=True, error=ValueError)
    with open(file, "ab") as stream:
        stream.write(b'{"index":3,"task":"t3"')
    before = file.read_bytes()
    assert run(["view", str(file), "--no-open"]) == 0
    assert file.read_bytes() == before
    writing.close()
    assert [s["index"] for s in listed(folder / "ets.html")] == [0, 1, 2]


def test_what_does_not_fit_is_said(
    tmp_path: Path, sheep: SearchResult, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save(tmp_path / "run", "ets", sheep, tuple(range(0, 60, 2)))
    assert run(["view", str(folder), "--max-mib", "1", "--no-open"]) == 0
    told = last_error(capsys)
    kept = sum(s["block"] is not None for s in listed(folder / "view.html"))
    assert 1 < kept < 30
    assert told.startswith(f"tts-decode: {30 - kept} of 30 searches are listed without their trees")
    assert (folder / "view.html").stat().st_size < (1 << 20) + 400_000


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["{folder}/none"], 2, "RUN: got .*none, which does not exist; expected a folder of --save"),
        (["{folder}", "-p", "7"], 2, "--problem: got 7, but the run has 3, from 0 to 2"),
        (["{folder}", "-s", "est"], 2, "--strategy: got 'est', but the run has ets"),
        (["{folder}", "-p", "1"], 1, "no search to show: none of those chosen has come to a result"),
        (["{folder}", "--serve", "65536"], 2, "--serve: got 65536, expected a port from 0 to 65535"),
        (["{folder}", "--max-mib", "0"], 2, "--max-mib: got 0, expected at least 1"),
        (
            ["{folder}", "--out", "{folder}/no/p.html"],
            1,
            "--out: .*no/p.html cannot be written: No such file",
        ),
        (["{folder}/empty"], 1, "empty: holds no NAME.jsonl of --save; give the folder"),
        (["{folder}/notes.json"], 1, "notes.json: is not a search result"),
        (["{folder}/notes.jsonl"], 1, "notes.jsonl: holds no 'tts-decode/saved'"),
        (
            ["{other}/damaged.jsonl"],
            1,
            "damaged.jsonl: line 2 is damaged: it does not agree with its checksum",
        ),
        (
            ["{other}/wrong.jsonl"],
            1,
            "wrong.jsonl: line 2 is damaged: it holds no result \\(problem.task: got 4",
        ),
        (["{other}/older.jsonl"], 1, "older.jsonl: is of 'tts-decode/saved', version 1; expected"),
    ],
)
def test_errors_are_a_line(
    arguments: list[str],
    code: int,
    message: str,
    tmp_path: Path,
    sheep: SearchResult,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = save(tmp_path / "run", "ets", sheep)
    (folder / "empty").mkdir()
    (folder / "notes.json").write_text("{}")
    (folder / "notes.jsonl").write_text("words\n")
    whole = (folder / "ets.jsonl").read_text()
    other = tmp_path / "other"
    other.mkdir()
    wrong = RecordFile(other / "wrong.jsonl", "tts-decode/saved", 2, resume=True, error=ValueError)
    wrong.write({"settings": {}})
    wrong.write({"index": 0, "task": 4, "prompt": "", "search": None})
    wrong.close()
    older = RecordFile(other / "older.jsonl", "tts-decode/saved", 1, resume=True, error=ValueError)
    older.write({"settings": {}})
    older.close()
    (other / "damaged.jsonl").write_text(whole.replace("Question 0", "Question 9"))
    given = [argument.format(folder=folder, other=other) for argument in arguments]
    assert run(["view", *given, *([] if "--serve" in given else ["--no-open"])]) == code
    error = last_error(capsys)
    assert re.match(f"tts-decode: (.*/)?{message}", error), error


@pytest.fixture
def served(tmp_path: Path, sheep: SearchResult) -> Iterator[tuple[int, subprocess.Popen[str]]]:
    """The port of a process that serves a page."""
    folder = save(tmp_path / "run", "ets", sheep)
    command = [sys.executable, "-m", "tts_decode", "view", str(folder), "--serve", "0", "--no-open"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            found = re.match(r"http://127\.0\.0\.1:(\d+)/ \(Ctrl-C ends\)$", line)
            assert found, line
            yield int(found[1]), process
        finally:
            process.kill()
    assert not (folder / "view.html").exists()


def get(port: int, path: str = "/", host: str | None = None, method: str = "GET") -> tuple[Any, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request(method, path, headers={} if host is None else {"Host": host})
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer, body


def test_the_server_gives_the_page_to_this_machine_alone(
    served: tuple[int, subprocess.Popen[str]], sheep: SearchResult
) -> None:
    port, process = served
    answer, body = get(port)
    assert (answer.status, answer.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert json.loads(Elements(body.decode()).scripts["search-0"]) == sheep.to_dict()
    assert get(port, host=f"localhost:{port}")[0].status == 200
    assert get(port, method="HEAD")[1] == b""
    assert get(port, "/../etc/passwd")[0].status == 404
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1.evil.example", ""):
        answer, body = get(port, host=host)
        assert (answer.status, b"tts" in body) == (403, False), host
    assert get(port, method="POST")[0].status == 501
    with socket.create_server(("127.0.0.2", port)):
        pass  # would be taken, were it bound to all addresses
    process.send_signal(signal.SIGTERM)  # a shell's background jobs ignore SIGINT
    assert process.wait(timeout=300) == 143
    assert process.stderr is not None
    assert process.stderr.read().splitlines()[-1] == "tts-decode: terminated"


def test_a_port_that_is_taken_says_so(
    tmp_path: Path, sheep: SearchResult, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert run(["view", str(save(tmp_path / "run", "ets", sheep)), "--serve", str(port)]) == 1
    assert last_error(capsys).startswith(f"tts-decode: --serve: port {port} of 127.0.0.1 cannot be used: ")


@pytest.mark.parametrize(
    ("flags", "display", "opens"),
    [(["--open"], None, True), ([], ":0", True), ([], None, False), (["--no-open"], ":0", False)],
)
def test_the_browser_opens_where_there_is_a_display(
    flags: list[str],
    display: str | None,
    opens: bool,
    tmp_path: Path,
    sheep: SearchResult,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.delenv("DISPLAY", raising=False)
    if display is not None:
        monkeypatch.setenv("DISPLAY", display)
    folder = save(tmp_path / "run", "ets", sheep)
    assert run(["view", str(folder), *flags]) == 0
    assert opened == ([(folder / "view.html").as_uri()] if opens else [])


def test_without_a_browser_the_address_is_told(
    tmp_path: Path, sheep: SearchResult, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("webbrowser.open", lambda address: False)
    folder = save(tmp_path / "run", "ets", sheep)
    assert run(["view", str(folder), "--open"]) == 0
    address = (folder / "view.html").as_uri()
    assert last_error(capsys) == f"tts-decode: found no browser to open; open {address} in one"
