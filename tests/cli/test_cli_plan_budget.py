"""`tts-decode plan-budget`: its table, its JSON, its advice, and the machine that it measures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_commands import PLAN
from tiny_models import tiny_model
from tts_decode.cli.app import run

pytestmark = pytest.mark.usefixtures("cache")


def plan_budget(folder: Path, *arguments: str) -> int:
    return run([*PLAN, "-m", str(folder / "tiny.gguf"), *arguments])


def test_plan_budget_table(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan_budget(folder, "-c", "400", "-n", "4", "--tokens", "20", "--share", "tree") == 0
    out, err = capsys.readouterr()
    for text in ("dense", "1/2", "GB read", "eTFLOP", "ms a step", "Sparse, with", "counts as 100 flops"):
        assert text in " ".join(out.split())
    assert "reading the config" in err
    assert "loading" not in err
    assert max(len(line) for line in out.splitlines()) <= 80


def test_plan_budget_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan_budget(folder, "-c", "400", "-n", "1", "--tokens", "20", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["machine"] == {"flops": 1e12, "bandwidth": 1e10, "intensity": 100}
    assert [plan["pages"] for plan in report["plans"]] == [25, 16]
    eflops = {plan["budget"]: plan["eflops"] for plan in report["plans"]}
    cheap = min(eflops.values())
    assert cheap <= eflops[report["cheapest"]] <= 1.01 * cheap
    for plan in report["plans"]:
        assert plan["flops"] + 100 * plan["bytes"] == pytest.approx(plan["eflops"])
        assert plan["bytes"] == pytest.approx(sum(part["bytes"] for part in plan["parts"].values()))
        assert plan["step_seconds"] > 0


def test_plan_budget_advises_dense_where_sparse_saves_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert plan_budget(folder, "-c", "32", "-n", "16", "--tokens", "400", "--summaries", "minmax") == 0
    assert "* Dense costs least" in capsys.readouterr().out


def test_plan_budget_measures_the_machine(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a model saved as a directory, and only what was not given."""
    directory = folder / "saved"
    tiny_model().save_pretrained(directory)
    assert (
        run(["plan-budget", "-m", str(directory), "-c", "99", "--tokens", "9", "--flops", "5e11", "--json"])
        == 0
    )
    out, err = capsys.readouterr()
    machine = json.loads(out)["machine"]
    assert machine["flops"] == 5e11
    assert machine["bandwidth"] > 1e6
    assert "measuring this machine" in err
