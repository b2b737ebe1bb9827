"""Files of `--save`: they are read as they were, and those that are damaged or not ours are refused."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from cli_commands import search_tasks
from tts_decode.cli.errors import CommandError
from tts_decode.cli.machine import device_name
from tts_decode.cli.saving import Saved
from tts_decode.records.strict_json import seal
from tts_decode.version import package_version

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture(scope="module")
def saved(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Header and lines of a run of two searches."""
    out = tmp_path_factory.mktemp("saved") / "out"
    assert search_tasks(folder, "--save", str(out)) == 0
    header, *lines = map(json.loads, (out / "best_of_n.jsonl").read_text().splitlines())
    return header, lines


def resealed(lines: list[Any]) -> str:
    """As a file whose checksums agree."""
    made, checksum = "", 0
    for line in lines:
        text, checksum = seal({k: v for k, v in line.items() if k != "crc32"}, checksum)
        made += text + "\n"
    return made


def opened(tmp_path: Path, text: str, settings: dict[str, Any]) -> Saved:
    (tmp_path / "best_of_n.jsonl").write_text(text)
    with Saved(tmp_path, "best_of_n", settings, 2) as found:
        return found


def test_a_run_tells_where_and_when_it_began(saved: tuple[dict[str, Any], list[dict[str, Any]]]) -> None:
    made = saved[0]["made"]
    assert datetime.fromisoformat(made["date"]) <= datetime.now(timezone.utc)
    assert (made["version"], made["machine"]) == (package_version(), device_name("cpu"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"search": {}}, "line 2 is damaged: it holds no result \\(result: lacks field"),
        ({"search": 5}, "line 2 is damaged: it holds no result \\(result: got 5"),
        ({"search.stats": None}, "line 2 is damaged: it holds no result \\(result.stats: got None"),
        ({"search.best.text": 4}, "line 2 is damaged: it holds no result \\(result.best.text: got 4"),
        ({"index": "0"}, "line 2 is damaged: it holds no result \\(index: got '0', expected an integer"),
        ({"index": 2}, "line 2 is damaged: it holds no result \\(index: got 2, expected 0 to 1"),
        ({"index": -1}, "line 2 is damaged"),
        ({"index": True}, "line 2 is damaged"),
        ({"index": 10**300}, "line 2 is damaged"),
        ({"eflops": None}, "line 2 is damaged: it holds no result \\(eflops: got None"),
        ({"eflops": "1"}, "line 2 is damaged"),
    ],
)
def test_wrong_types_are_refused(
    saved: tuple[dict[str, Any], list[dict[str, Any]]], tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    """Though the checksums agree."""
    header, (first, second) = saved
    line = json.loads(json.dumps(first))
    for path, value in change.items():
        *above, name = path.split(".")
        inside = line
        for step in above:
            inside = inside[step]
        inside[name] = value
    with pytest.raises(CommandError, match=message):
        opened(tmp_path, resealed([header, line, second]), header["settings"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"settings": None}, "line 1 is damaged: it has no settings"),
        ({"settings": [1]}, "line 1 is damaged: it has no settings"),
        ({"settings": {}}, "was written with model=None, not"),
        (
            {"version": 1},
            "is of 'tts-decode/saved', version 1; expected 'tts-decode/saved', version 2: go on",
        ),
        ({"schema": 3}, "is of 3, version 2; expected"),
        ({"schema": "tts-decode/compare", "version": 1}, "is of 'tts-decode/compare', version 1; expected"),
    ],
)
def test_headers_of_others_are_refused(
    saved: tuple[dict[str, Any], list[dict[str, Any]]], tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    header, lines = saved
    with pytest.raises(CommandError, match=message):
        opened(tmp_path, resealed([header | change, *lines]), header["settings"])


@pytest.mark.parametrize(
    "line", ["[" * 200_000, '{"index": ' + "1" * 5000 + "}", '{"index": 1e400}', '{"a":1,"a":1}']
)
def test_lines_that_no_reader_takes_are_refused(
    saved: tuple[dict[str, Any], list[dict[str, Any]]], tmp_path: Path, line: str
) -> None:
    header, lines = saved
    with pytest.raises(
        CommandError, match=r"^--save: .*best_of_n\.jsonl: line 4 is damaged: it .*; remove that line"
    ):
        opened(tmp_path, resealed([header, *lines]) + line + "\n", header["settings"])


def test_saved_results_are_read_as_they_were(
    saved: tuple[dict[str, Any], list[dict[str, Any]]], tmp_path: Path
) -> None:
    header, lines = saved
    found = opened(tmp_path, resealed([header, *lines]), header["settings"])
    assert {index: result.to_dict() for index, (result, _) in found.results.items()} == {
        line["index"]: line["search"] for line in lines
    }


def test_settings_that_json_lacks_are_compared(tmp_path: Path) -> None:
    """An option of infinity is neither none nor another."""
    infinite = {"limit": float("inf")}
    for _ in range(2):
        with Saved(tmp_path, "x", infinite, 1):
            pass
    for other in (-float("inf"), float("nan"), None):
        with pytest.raises(CommandError, match="was written with limit='inf', not"):
            Saved(tmp_path, "x", {"limit": other}, 1)
