"""`tts-decode compare`: its table and JSON, intervals and differences, and problems that fail."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
from cli_commands import compare, search
from tts_decode import Branch
from tts_decode.search import STRATEGIES, SearchResult
from tts_decode.select.statistics import wilson_interval

pytestmark = pytest.mark.usefixtures("cache")


def test_compare_table(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare(folder, "--tasks", str(folder / "tasks.jsonl"), "-o", "n=4", "-o", "ets.lambda_b=2") == 0
    out = capsys.readouterr().out
    for name in ("best_of_n", "beam_search", "rebase", "ets", "solved", "tok/s", "eTFLOP"):
        assert name in out
    assert max(len(line) for line in out.splitlines()) <= 80


def test_compare_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare(folder, "--limit", "3", "-s", "rebase", "-s", "best_of_n", "-o", "n=4", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert [row["strategy"] for row in report["strategies"]] == ["rebase", "best_of_n"]
    for row in report["strategies"]:
        assert row["problems"] == 3
        assert 0 <= row["solved"] <= row["found"] <= 3
        assert row["peak_unique_tokens"] <= row["peak_logical_tokens"]
        assert sum(outcome["generated_tokens"] for outcome in row["outcomes"]) == row["generated_tokens"]
        assert row["eflops"] == pytest.approx(row["flops"] + 281.25 * row["read_bytes"])


def test_compare_states_intervals_and_differences(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--limit", "4", "-s", "best_of_n", "-s", "beam_search", "-o", "n=4", "--scorer", "verifier"]
    assert compare(folder, *arguments, "--json") == 0
    first, second = json.loads(capsys.readouterr().out)["strategies"]
    for row in (first, second):
        assert row["accuracy"] == wilson_interval(row["solved"], 4)._asdict()
        assert 0 < row["mean_kv_bytes"] <= row["search_peak_kv_bytes"] <= row["peak_kv_bytes"]
    assert first["against_first"] is None
    pairs = zip(first["outcomes"], second["outcomes"], strict=True)
    ratios = [b["mean_kv_bytes"] / a["mean_kv_bytes"] for a, b in pairs]
    assert second["against_first"]["mean_kv_bytes"]["value"] == pytest.approx(math.prod(ratios) ** 0.25)
    gain = second["against_first"]["accuracy"]
    assert gain["value"] == pytest.approx((second["solved"] - first["solved"]) / 4)
    assert gain["high"] - gain["low"] > 0.5  # four problems tell little, also where both solve the same
    assert compare(folder, *arguments) == 0
    assert "+0.0 (+0.0 to +0.0)" not in capsys.readouterr().out


def test_all_strategies_run_side_by_side(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On one problem, and each saved result is read as it was. For some that make prompts of answers, these
    are too long for the tiny model."""
    monkeypatch.setattr("tts_decode.cli.session.gc.collect", lambda: 0)  # takes longer than the searches
    chosen = [argument for name in STRATEGIES for argument in ("-s", name)]
    arguments = [*chosen, "--scorer", "verifier", "--max-tokens", "4", "--max-step-tokens", "2"]
    small = ["n=4", "max_samples=4", "num_simulations=4", "max_trees=4", "num_votes=4", "max_parts=4"]
    for option in [*small, "mcts_judge.num_simulations=1", "b4.num_tests=2"]:
        arguments += ["-o", option]
    arguments += ["--tasks", str(folder / "tasks.jsonl"), "--limit", "1", "--save", str(tmp_path)]
    assert compare(folder, *arguments, "--json") == 0
    rows = json.loads(capsys.readouterr().out)["strategies"]
    assert [row["strategy"] for row in rows] == list(STRATEGIES)
    for row in rows:
        error = row["outcomes"][0]["error"]
        assert error is None or "the model allows 512" in error, row["strategy"]
        saved = json.loads((tmp_path / f"{row['strategy']}.jsonl").read_text().splitlines()[1])["search"]
        assert (saved is None) == (error is not None)
        assert saved is None or SearchResult.from_dict(saved).to_dict() == saved


def test_a_failed_problem_leaves_the_others(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = folder / "one_fails.jsonl"
    lines = [{"prompt": "1+1=", "answer": 2}, {"name": "long", "prompt": "a" * 600, "answer": 1}]
    file.write_text("\n".join(json.dumps(line) for line in [*lines, {"prompt": "2+2=", "answer": 4}]))
    arguments = ["--tasks", str(file), "-s", "best_of_n", "-s", "rebase", "-o", "n=2"]
    assert compare(folder, *arguments, "--json") == 0
    for row in json.loads(capsys.readouterr().out)["strategies"]:
        assert (row["problems"], row["failed"]) == (3, 1)
        assert [outcome["error"] is None for outcome in row["outcomes"]] == [True, False, True]
        assert row["outcomes"][1]["error"].startswith("PromptTooLongError: prompt has 600 tokens")
        assert row["outcomes"][1]["solved"] is False
    assert compare(folder, *arguments) == 0
    assert (
        "rebase: 1 of 3 failed, first long: PromptTooLongError: prompt has 600 tokens"
        in capsys.readouterr().out
    )
    assert search(folder, *arguments[:4], "-o", "n=2") == 0
    assert "failed: long: PromptTooLongError: prompt has 600 tokens" in capsys.readouterr().out


def test_a_strategy_that_fails_everywhere_leaves_the_others(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--limit", "2", "-s", "dvts", "-s", "best_of_n", "-o", "n=3", "--json"]
    assert compare(folder, *arguments) == 0
    rows = json.loads(capsys.readouterr().out)["strategies"]
    assert [row["failed"] for row in rows] == [2, 0]
    assert "n = 3" in rows[0]["outcomes"][0]["error"]
    assert rows[1]["against_first"]["mean_kv_bytes"] is None


def test_a_scorer_that_hangs_ends_its_search_only(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hangs_at_times(branches: Sequence[Branch]) -> list[float]:
        if "1+1" in branches[0].full_text:
            await asyncio.sleep(60)
        return [0.0] * len(branches)

    monkeypatch.setattr("tts_decode.cli.scorers.mean_probability", lambda: hangs_at_times)
    arguments = ["--tasks", str(folder / "tasks.jsonl"), "-s", "best_of_n", "-o", "n=2"]
    assert compare(folder, *arguments, "--scorer-timeout", "0.2") == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "1 of 2 ended early, first: scorer hangs_at_times gave no scores within 0.2 s" in out


def test_compare_dense_and_sparse(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--limit", "1", "--shots", "2", "-s", "rebase", "-o", "n=4", "--sparse", "4"]
    arguments += ["--sparse-dense-layers", "1"]
    assert compare(folder, *arguments, "--sparse-share", "tree", "--json") == 0
    dense, sparse = json.loads(capsys.readouterr().out)["strategies"]
    assert dense["sparse"] is None
    assert (sparse["sparse"]["budget"], sparse["sparse"]["share"]) == (4, "tree")
    assert dense["strategy"] == sparse["strategy"] == "rebase"
    assert "The answer is" in sparse["outcomes"][0]["prompt"]
    assert compare(folder, *arguments) == 0
    out = capsys.readouterr().out
    assert "rebase, sparse" in out
    assert max(len(line) for line in out.splitlines()) <= 80
