"""The command from arguments to output, on a tiny model: `search`, `strategies`, `info`, help."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from typing import Any

import pytest
from cli_commands import last_error, search
from tiny_models import byte_tokenizer, tiny_model
from tiny_quantised import write_quantised
from transformers import AutoModelForSequenceClassification
from tts_decode.cli.app import run
from tts_decode.cli.strategy_options import families
from tts_decode.search import STRATEGIES

pytestmark = pytest.mark.usefixtures("cache")

FIRST_OF_FAMILIES = [members[0].name for members in families().values()]


@pytest.mark.parametrize("strategy", [name for name in FIRST_OF_FAMILIES if name != "particle_filter"])
def test_search_prints_answer_tree_and_cost(
    folder: Path, capsys: pytest.CaptureFixture[str], strategy: str
) -> None:
    assert search(folder, "hello", "-s", strategy, "-o", f"{STRATEGIES[strategy].size}=4") == 0
    out, err = capsys.readouterr()
    assert strategy in out
    assert "└─" in out
    assert "tok/s" in out
    assert strategy in err  # the stage, as a plain line where there is no terminal
    assert max(len(line) for line in out.splitlines()) <= 80


def test_search_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert search(folder, "hello", "-s", "beam_search", "-o", "n=4", "-o", "beam_width=2", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    (result,) = report["results"]
    assert result["answer"] == result["search"]["best"]["text"]
    assert result["generated_tokens"] == report["cost"]["generated_tokens"] > 0
    assert report["dtype"] == "float32"
    assert report["cost"]["peak_kv_bytes"] > 0


def test_search_with_int8_pages(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    costs = []
    for kv_dtype in ("auto", "int8"):
        arguments = ("hello", "-s", "best_of_n", "-o", "n=2", "--kv-dtype", kv_dtype, "--json")
        assert search(folder, *arguments) == 0
        report = json.loads(capsys.readouterr().out)
        assert report["kv_dtype"] == {"auto": "float32"}.get(kv_dtype, kv_dtype)
        costs.append(report["cost"]["peak_kv_bytes"])
    assert costs[1] < costs[0] / 3  # a quarter, if both texts were equally long


def test_same_seed_same_text(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answers = []
    for seed in ("1", "1", "2"):
        assert search(folder, "hello", "-o", "n=2", "--seed", seed, "--json") == 0
        answers.append(json.loads(capsys.readouterr().out)["results"][0]["search"]["candidates"])
    assert answers[0] == answers[1] != answers[2]


def test_search_of_a_task_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert search(folder, "--tasks", str(folder / "tasks.jsonl"), "-s", "best_of_n", "-o", "n=2") == 0
    out = capsys.readouterr().out
    assert "sky" in out
    assert "blue" in out


def test_budget(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert search(folder, "hello", "-o", "n=4", "--budget-tokens", "7", "--json") == 0
    assert json.loads(capsys.readouterr().out)["cost"]["generated_tokens"] <= 7


def test_cost_budget(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokens = []
    for budget in ("1e6", "1e9", "1e18"):
        assert search(folder, "hello", "-o", "n=4", "--budget-cost", budget, "--json") == 0
        tokens.append(json.loads(capsys.readouterr().out)["cost"]["generated_tokens"])
    assert tokens == sorted(tokens)
    assert tokens[0] == 0
    assert tokens[-1] > tokens[1] > 0


def test_a_reward_model_as_scorer(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny_model(seed=3, auto=AutoModelForSequenceClassification, num_labels=1)
    model.save_pretrained(folder / "reward")
    template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    byte_tokenizer(chat_template=template).save_pretrained(folder / "reward")
    arguments = ["-s", "beam_search", "-o", "n=4", "-o", "beam_width=2", "--kv-mib", "64", "--json"]
    reports = []
    for scorer in ("mean_probability", f"outcome:{folder / 'reward'}"):
        assert search(folder, "hello", *arguments, "--scorer", scorer) == 0
        reports.append(json.loads(capsys.readouterr().out))
    plain, rewarded = reports
    assert rewarded["results"][0]["search"]["candidates"] != plain["results"][0]["search"]["candidates"]
    assert rewarded["cost"]["flops"] > plain["cost"]["flops"]  # what the reward model reads counts
    assert search(folder, "hello", "--scorer", "outcome:/no/such/folder") == 1
    assert "there is no folder /no/such/folder" in last_error(capsys)


def test_strategies_are_listed_and_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["strategies"]) == 0
    out = capsys.readouterr().out
    for name, strategy in STRATEGIES.items():
        assert f"{name}: {strategy.summary}"[:70] in out
    assert max(map(len, out.splitlines())) <= 80
    assert run(["strategies", "ets"]) == 0
    out = capsys.readouterr().out
    assert "2502.13575" in out
    assert "lambda_b=1.0" in out
    assert max(map(len, out.splitlines())) <= 80
    assert " ".join(inspect.cleandoc(STRATEGIES["ets"].__doc__ or "").split()) in " ".join(out.split())
    assert run(["strategies", "--json"]) == 0
    assert [item["name"] for item in json.loads(capsys.readouterr().out)] == [
        member.name for members in families().values() for member in members
    ]


def test_info(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["info"]) == 0
    assert "generic" in capsys.readouterr().out
    assert run(["info", "--json"]) == 0
    facts: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert facts["kernel_isa"] in facts["isa_levels"]
    assert facts["versions"]["torch"]


def test_info_says_what_the_self_check_found(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["info", "-m", str(folder / "tiny.gguf"), "--dtype", "float32"]
    assert run(arguments) == 0
    shown = capsys.readouterr().out
    assert "agrees with the model's own forward" in shown
    assert "general, packed" in shown
    assert run([*arguments, "--json"]) == 0
    check = json.loads(capsys.readouterr().out)["self_check"]
    assert 0 < check["largest_difference"] < check["allowed"]
    assert 0 < check["seconds"] < 60


def test_info_lists_weights_and_their_memory(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = folder / "quantised.gguf"
    write_quantised(file, "Q4_0")
    facts = {}
    for weights in ("auto", "float32"):
        assert run(["info", "-m", str(file), "--weights", weights, "--json"]) == 0
        facts[weights] = json.loads(capsys.readouterr().out)
        assert facts[weights]["model"]["path"] == "packed"
    assert "Q4_0" in facts["auto"]["weights"]
    assert set(facts["float32"]["weights"]) == {"float32", "in memory", "in the file"}
    size = {key: float(one["weights"]["in memory"].split()[0]) for key, one in facts.items()}
    assert 0 < size["auto"] < 0.3 * size["float32"]


@pytest.mark.parametrize("command", ["search", "compare", "plan-budget", "info"])
def test_help_teaches(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([command, "--help"]) == 0
    out = capsys.readouterr().out
    assert f"tts-decode {command}" in out
    if command in ("search", "compare"):
        for name in STRATEGIES:
            assert name in out


def test_a_search_that_runs_out_of_pages_shows_what_it_has(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["search", "a" * 400, "-o", "n=64", "-m", str(folder / "tiny.gguf"), "--kv-mib", "1"]
    assert run(arguments) == 0
    assert re.search(
        r"ended early: .* KV\s+pages .*raise\s+--kv-mib\s+or\s+set\s+--kv-offload-mib",
        capsys.readouterr().out,
        re.DOTALL,
    )


def test_a_search_whose_pages_are_offloaded_is_that_of_a_large_pool(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["search", "a" * 400, "-o", "n=64", "-m", str(folder / "tiny.gguf"), "--json"]
    reports = []
    offloaded = ["--kv-mib", "1", "--kv-offload-mib", "64", "--kv-offload-folder", str(tmp_path)]
    for memory in (["--kv-mib", "64"], offloaded):
        assert run([*arguments, *memory]) == 0
        reports.append(json.loads(capsys.readouterr().out))
    large, small = (report["results"][0]["search"] for report in reports)
    assert [c["text"] for c in small["candidates"]] == [c["text"] for c in large["candidates"]]
    assert large["stopped"] is small["stopped"] is None
    peaks = [report["cost"]["peak_kv_bytes"] for report in reports]
    assert peaks[1] <= 1 << 20 < peaks[0]
    assert (
        small["stats"]["peak_bytes"] == large["stats"]["peak_bytes"]
    )  # what the search holds, in all places


def test_interrupt(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("tts_decode.cli.session.load_model", interrupt)
    assert search(folder, "hello") == 130
