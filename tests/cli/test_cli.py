"""The command from arguments to output, on a tiny model; every user error is one line on stderr."""

from __future__ import annotations

import asyncio
import io
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_commands import compare, search, write_files
from rich.console import Console
from tiny_models import EOS, VOCAB, byte_tokenizer, tiny_model
from transformers import LlamaConfig, LlamaForSequenceClassification
from tts_decode import Branch
from tts_decode.cli.app import run
from tts_decode.cli.display import Display, Rate, mib
from tts_decode.cli.errors import UsageError
from tts_decode.cli.options import families, parse_options, unescape
from tts_decode.rewards.self_evaluation import chat_question
from tts_decode.search import STRATEGIES, SearchResult, SearchRun, Strategy
from tts_decode.select.statistics import wilson_interval


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds a model, its converted copy and a task file."""
    folder = tmp_path_factory.mktemp("cli")
    write_files(folder)
    return folder


@pytest.fixture(autouse=True)
def cache(folder: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    monkeypatch.setenv("COLUMNS", "80")


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


def test_answers_match_what_they_are_held_to(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("llguidance")
    common = ["hi", "-s", "best_of_n", "-o", "n=2", "--json"]
    assert search(folder, *common, "--regex", "[a-c]{3}!", "--presence-penalty", "1") == 0
    (result,) = json.loads(capsys.readouterr().out)["results"]
    texts = [candidate["text"] for candidate in result["search"]["candidates"]]
    assert all(re.fullmatch("[a-c]{3}!", text) for text in texts)
    (folder / "answer.json").write_text('{"enum": ["left", "right"]}')
    assert search(folder, *common, "--json-schema", str(folder / "answer.json")) == 0
    (result,) = json.loads(capsys.readouterr().out)["results"]
    assert {c["text"] for c in result["search"]["candidates"]} <= {'"left"', '"right"'}
    (folder / "answer.gbnf").write_text('root ::= "no" | "yes"')
    assert search(folder, *common, "--grammar", str(folder / "answer.gbnf")) == 0
    (result,) = json.loads(capsys.readouterr().out)["results"]
    assert {c["text"] for c in result["search"]["candidates"]} <= {"no", "yes"}
    assert search(folder, *common, "--regex", "(") == 2
    assert "pattern: got what llguidance refuses" in capsys.readouterr().err


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
    assert "n=3" in rows[0]["outcomes"][0]["error"]
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


def test_a_reward_model_as_scorer(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        num_labels=1,
        pad_token_id=EOS,
    )
    LlamaForSequenceClassification(config).save_pretrained(folder / "reward")
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    tokenizer.save_pretrained(folder / "reward")
    arguments = ["-s", "beam_search", "-o", "n=4", "-o", "beam_width=2", "--kv-mib", "64", "--json"]
    reports = []
    for scorer in ("mean_probability", f"outcome:{folder / 'reward'}"):
        assert search(folder, "hello", *arguments, "--scorer", scorer) == 0
        reports.append(json.loads(capsys.readouterr().out))
    plain, rewarded = reports
    assert rewarded["results"][0]["search"]["candidates"] != plain["results"][0]["search"]["candidates"]
    assert rewarded["cost"]["flops"] > plain["cost"]["flops"]  # what the reward model reads counts
    assert search(folder, "hello", "--scorer", "outcome:/no/such/folder") == 1
    assert "there is no folder /no/such/folder" in capsys.readouterr().err.splitlines()[-1]


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
    assert run(["strategies", "--json"]) == 0
    assert [item["name"] for item in json.loads(capsys.readouterr().out)] == [
        member.name for members in families().values() for member in members
    ]


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


PLAN = ["plan-budget", "--dense-layers", "0", "--flops", "1e12", "--bandwidth", "1e10", "--dtype", "bfloat16"]


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


@pytest.mark.parametrize("command", ["search", "compare", "plan-budget", "info"])
def test_help_teaches(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([command, "--help"]) == 0
    out = capsys.readouterr().out
    assert f"tts-decode {command}" in out
    if command in ("search", "compare"):
        for name in STRATEGIES:
            assert name in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nonsense"], "nonsense"),
        (["search"], "either a prompt or --tasks"),
        (["search", "a", "--tasks", "b.jsonl"], "either a prompt or --tasks"),
        (["search", "a", "--nonsense"], "--nonsense"),
        (["search", "a", "-s", "nonsense"], "unknown strategy 'nonsense'; for a list: tts-decode strategies"),
        (["search", "a", "-o", "n"], "option 'n': expected KEY=VALUE"),
        (["search", "a", "-o", "n=x"], "option 'n=x': expected an integer, got 'x'"),
        (["search", "a", "-o", "beams=3"], "unknown option 'beams'; known: ets (n=16"),
        (
            ["search", "a", "-o", "lamda_d=3"],
            "unknown option 'lamda_d'; did you mean lambda_d or lambda_b? known: ",
        ),
        (["search", "a", "-o", "rebase.n=3"], "'rebase' is not among the strategies"),
        (["search", "a", "--temperature", "-1"], "temperature: got -1.0, expected a finite number >= 0"),
        (["search", "a", "--frequency-penalty", "3"], "frequency_penalty: got 3.0, expected a finite number"),
        (
            ["search", "a", "--regex", "a", "--grammar", "b"],
            "--regex: got --grammar too, expected one of them",
        ),
        (["search", "a", "--json-schema", "missing.json"], "--json-schema: "),
        (["search", "a", "--max-tokens", "0"], "max_tokens: got 0, expected >= 1"),
        (["search", "a", "--kv-mib", "0"], "--kv-mib: got 0"),
        (["search", "a", "--kv-dtype", "int4"], "--kv-dtype: got 'int4', expected auto or int8"),
        (["search", "a", "--kv-mib", "99999999999"], "more than the system grants"),
        (["search", "a\udc80"], "text is not valid Unicode"),
        (["search", "a", "-o", "softmax_temperature=nan"], "softmax_temperature: got nan"),
        (["search", "a", "--dtype", "float64"], "dtype: got 'float64'"),
        (["search", "a", "-s", "best_of"], "unknown strategy 'best_of'; did you mean best_of_n"),
        (["search", "a", "--scorer", "oracle"], "unknown scorer 'oracle'"),
        (["search", "a", "--scorer", "oracle:folder"], "--scorer: unknown reader 'oracle'; expected one of"),
        (["search", "a", "--scorer", "outcome:"], "expected READER:FOLDER"),
        (["search", "a", "--scorer", "verifier"], "task prompt has no answer to compare with"),
        (
            ["search", "a", "--scorer-timeout", "0"],
            "scorer_timeout: got 0.0, expected a number of seconds > 0",
        ),
        (["strategies", "nonsense"], "unknown strategy 'nonsense'"),
        (["compare", "--resume"], "--resume: needs --save FOLDER"),
        (["search", "a", "--resume"], "--resume: needs --save FOLDER"),
        (["search", "a", "--budget-tokens", "0"], "max_tokens: got 0, expected >= 1"),
        (["search", "", "-o", "n=2"], "prompt"),
        (["search", "a", "-s", "beam_search", "-o", "n=5", "-o", "beam_width=2"], "beam_width: got 2"),
        (["search", "a" * 2000], "2000 tokens"),
        (["compare", "--limit", "0"], "--limit: got 0"),
        (["compare", "--parallel", "0"], "--parallel: got 0"),
        (["compare", "--shots", "-1"], "--shots: got -1"),
        (["compare", "--shots", "5", "--tasks", "a.jsonl"], "--shots: only for the default problems"),
        (["compare", "--shots", "100000"], "ask for fewer"),
        (["compare", "--sparse", "0"], "--sparse: got '0', expected a number of pages, or a share"),
        (
            ["search", "a", "--sparse", "1/8", "--sparse-share", "all"],
            "share: got 'all', expected one of 'branch'",
        ),
        (["search", "a", "--sparse", "4"], "dense_layers: got 2, expected fewer than the model's 2 layers"),
        (["compare", "-s", "ets", "-s", "ets"], "given twice"),
        (["search", "a", "--budget-cost", "-1"], "max_cost: got -1.0, expected a number of eFLOPs > 0"),
        (["plan-budget", "--context", "0"], "--context: got 0, expected at least 1"),
        (["plan-budget", "--tokens", "1"], "--tokens: got 1, expected at least 2"),
        (["plan-budget", "--bandwidth", "nan"], "--bandwidth: got nan, expected a positive number"),
        (["plan-budget", "-c", "500", "--tokens", "100"], "exceeds the model's 512 positions"),
        (
            [*PLAN, "-c", "64", "--tokens", "9", "--share", "none"],
            "--share: got 'none', expected branch or tree",
        ),
        ([*PLAN, "-c", "64", "--tokens", "9", "--dense-layers", "3"], "but the model has 2 layers"),
    ],
)
def test_usage_errors(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    if arguments[0] in ("search", "compare", "plan-budget"):
        arguments = [*arguments, "-m", str(folder / "tiny.gguf")]
    assert run(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err.splitlines()[-1]
    assert err.splitlines()[-1].startswith("tts-decode: ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["search", "a", "-m", "/no/such/model"], "no file or directory /no/such/model"),
        (["search", "a", "-m", "{folder}/cut.gguf"], "cut.gguf as GGUF; it may be damaged"),
        ([*PLAN, "-m", "/no/such/model"], "no file or directory /no/such/model"),
        ([*PLAN, "-m", "{folder}/cut.gguf"], "cut.gguf as GGUF; it may be damaged"),
        (["search", "--tasks", "/no/such/file"], "cannot be read: No such file"),
        (["compare", "--tasks", "{folder}/open.jsonl"], "task 1 has no answer to compare with"),
    ],
)
def test_failures(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert run([argument.format(folder=folder) for argument in arguments]) == 1
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_a_search_that_runs_out_of_pages_shows_what_it_has(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["search", "a" * 400, "-o", "n=64", "-m", str(folder / "tiny.gguf"), "--kv-mib", "1"]
    assert run(arguments) == 0
    assert re.search(r"ended early: .* KV\s+pages .*raise\s+kv_bytes", capsys.readouterr().out, re.DOTALL)


def test_interrupt(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("tts_decode.cli.session.load_model", interrupt)
    assert search(folder, "hello") == 130


def test_options_without_a_default_have_the_type_of_their_annotation() -> None:
    async def made(
        run: SearchRun, *, n: int = 1, limit: int | None = None, scale: float | None = None
    ) -> None:
        """Nothing."""

    chosen = Strategy(made, "nothing")  # type: ignore[arg-type]
    assert chosen.plain_options == {"n": (int, 1), "limit": (int, None), "scale": (float, None)}
    assert parse_options([chosen], ["limit=3", "scale=2"]) == [{"limit": 3, "scale": 2.0}]
    with pytest.raises(UsageError, match="'limit=x': expected an integer"):
        parse_options([chosen], ["limit=x"])


def test_options_go_to_the_strategies_that_have_them() -> None:
    chosen = [STRATEGIES["rebase"], STRATEGIES["ets"]]
    rebase, ets = parse_options(chosen, ["n=8", "lambda_b=2", "ets.n=4", "node_cost=token"])
    assert rebase == {"n": 8}
    assert ets == {"n": 4, "lambda_b": 2.0, "node_cost": "token"}
    (lm,) = parse_options([STRATEGIES["lm_beam_search"]], ["early_stopping=true"])
    assert lm == {"early_stopping": True}
    with pytest.raises(UsageError, match="expected true or false"):
        parse_options([STRATEGIES["lm_beam_search"]], ["early_stopping=perhaps"])


def test_chat_question_continues_a_conversation() -> None:
    class Tokenizer:
        def apply_chat_template(self, messages: list[dict[str, str]], **options: object) -> str:
            assert options == {"tokenize": False, "add_generation_prompt": True}
            return "".join(f"<{m['role']}>{m['content']}</>" for m in messages) + "<assistant>"

    question = chat_question(Tokenizer())
    assert question.startswith("</><user>")
    assert question.endswith("</><assistant>")


def test_display_on_a_terminal_leaves_nothing_behind() -> None:
    stream = io.StringIO()
    with Display(Console(file=stream, force_terminal=True, width=80)) as display:
        display.stage("ets: 3 problems")
        display.update("1 done · 17 tokens")
    assert "17 tokens" in stream.getvalue()
    assert stream.getvalue().endswith("\x1b[2K")  # the line is erased


def test_small_helpers(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 1.0, 2.0, 10.0, 11.0])
    monkeypatch.setattr("tts_decode.cli.display.time.monotonic", lambda: next(clock))
    rate = Rate(window=3.0)
    assert [round(rate(total)) for total in (0, 50, 100, 100, 400)] == [0, 50, 50, 0, 300]
    assert (mib(1 << 19), mib(300 << 20)) == ("0.5", "300")
    assert unescape("a\\n\\tb") == "a\n\tb"
