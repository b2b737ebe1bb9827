"""The file of searches of `benches.search_comparison`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import typer

from benches.search_comparison import Study

SETTINGS = {"model": "tiny", "lambda_d": {16: 1.5}}
RECORDS = [{"width": 16, "task": f"sum/{i}", "seconds": i / 4} for i in range(3)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "searches.jsonl"
    for record in RECORDS:  # each in a run of its own
        Study(path, SETTINGS).add(record)
    return path


def test_searches_are_found_again(path: Path) -> None:
    study = Study(path, SETTINGS)
    assert study.records == RECORDS
    assert study.find(task="sum/1") == [RECORDS[1]]


def test_a_line_that_a_crash_cut_off_is_run_again(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])
    assert Study(path, SETTINGS).records == RECORDS[:2]


def test_a_number_that_was_changed_is_noticed(path: Path) -> None:
    path.write_text(path.read_text().replace('"seconds":0.25', '"seconds":0.35'))
    with pytest.raises(typer.BadParameter, match="line 3 is damaged"):
        Study(path, SETTINGS)


def test_other_settings_are_refused(path: Path) -> None:
    with pytest.raises(typer.BadParameter, match="other settings"):
        Study(path, SETTINGS | {"model": "other"})
    assert Study(path, SETTINGS).records == RECORDS


def test_the_results_in_the_repository_can_be_gone_on_from(tmp_path: Path) -> None:
    results = Path(__file__).parents[2] / "benches/results/search_comparison.jsonl"
    copy = Path(shutil.copy(results, tmp_path))
    settings = json.loads(copy.read_text().partition("\n")[0])
    for name in ("schema", "version", "crc32"):
        del settings[name]
    assert Study(copy, settings).find(width=16, task="sum/0")
