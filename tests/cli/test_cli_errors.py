"""Every user error of the command is one line on stderr, with a hint under it."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_commands import PLAN, error_line, last_error
from tts_decode.cli.app import run

pytestmark = pytest.mark.usefixtures("cache")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nonsense"], "nonsense"),
        (["search"], "PROMPT: got none, expected a question in quotes"),
        (["search", "a", "--tasks", "b.jsonl"], "PROMPT: got 'a' and --tasks too, expected one of them"),
        (["search", "a", "--nonsense"], "--nonsense"),
        (["search", "a", "-s", "nonsense"], "--strategy: got 'nonsense', expected the name"),
        (["search", "a", "-o", "n"], "--option: got 'n', expected KEY=VALUE"),
        (["search", "a", "-o", "n=x"], "--option: got 'n=x', expected an integer"),
        (["search", "a", "-o", "n=0"], "--option n: got 0, expected >= 1"),
        (["search", "a", "-o", "n=1000000000"], "--option n: got 1000000000, expected at most 100,000"),
        (["compare", "-o", "ets.n=100001"], "--option n: got 100001, expected at most 100,000"),
        (["search", "a", "-o", "n=1e9"], "--option: got 'n=1e9', expected an integer"),
        (
            ["search", "a", "-o", "beams=3"],
            "--option: got 'beams=3', but no strategy that runs has 'beams'; known: ets (n=16",
        ),
        (
            ["search", "a", "-o", "lamda_d=3"],
            "no strategy that runs has 'lamda_d'; did you mean lambda_d or lambda_b? known: ",
        ),
        (["search", "a", "-o", "rebase.n=3"], "'rebase' is not among the strategies"),
        (["search", "a", "--temperature", "-1"], "--temperature: got -1.0, expected a finite number >= 0"),
        (["search", "a", "--seed", "x"], "tts-decode: --seed: got 'x', expected an integer"),
        (["search", "a", "--seed", "1.5"], "--seed: got '1.5', expected an integer"),
        (["search", "a", "--temperature", "hot"], "--temperature: got 'hot', expected a number"),
        (["search", "a", "--max-tokens", "0"], "--max-tokens: got 0, expected >= 1"),
        (["search", "a", "--max-step-tokens", "0"], "--max-step-tokens: got 0, expected >= 1"),
        (["search", "a", "--stop", ""], "--stop: got '', expected a text"),
        (["search", "a", "--device", "tpu"], "--device: got 'tpu', expected 'cpu', 'cuda', 'cuda:N'"),
        (["search", "a", "--weights", "x"], "--weights: got 'x', expected"),
        (
            ["search", "a", "--frequency-penalty", "3"],
            "--frequency-penalty: got 3.0, expected a finite number, -2 <= --frequency-penalty <= 2",
        ),
        (
            ["search", "a", "--dtype", "float16"],
            "--dtype: got float16 on the CPU, expected float32, bfloat16",
        ),
        (["search", "a", "--weights", "float16"], "--weights: got float16 on the CPU, expected float32"),
        (["serve", "--port", "0", "--dtype", "float16"], "--dtype: got float16 on the CPU, expected float32"),
        (["serve", "--port", "0", "--kv-mib", str(10**20)], f"--kv-mib: got {10**20}, "),
        (
            ["search", "a", "--regex", "a", "--grammar", "b"],
            "--regex: got --grammar too, expected one of them",
        ),
        (
            ["search", "a", "--json-schema", "missing.json"],
            "--json-schema: missing.json cannot be read: No such file",
        ),
        (["search", "a", "--grammar", "/"], "--grammar: / cannot be read: Is a directory"),
        (["search", "a", "--kv-mib", "0"], "--kv-mib: got 0"),
        (["search", "a", "--kv-offload-mib", "0"], "--kv-offload-mib: got 0, expected at least 1"),
        (
            ["search", "a", "--kv-offload-folder", "."],
            "--kv-offload-folder: got a folder, expected --kv-offload-mib beside it",
        ),
        (
            ["search", "a", "--kv-offload-mib", "1", "--kv-offload-folder", "/no/folder"],
            "--kv-offload-folder: /no/folder does not take a file of",
        ),
        (["search", "a", "--kv-dtype", "int4"], "--kv-dtype: got 'int4', expected auto or int8"),
        (["search", "a", "--kv-mib", "99999999999"], "--kv-mib: got 99999999999, more than the system"),
        (["search", "a\udc80"], "prompt: got surrogates not allowed at 1, expected valid Unicode"),
        (["search", "a", "-o", "softmax_temperature=nan"], "--option softmax_temperature: got nan"),
        (["search", "a", "--dtype", "float64"], "--dtype: got 'float64'"),
        (["search", "a", "-s", "best_of"], "the name of a strategy; did you mean best_of_n"),
        (["search", "a", "--scorer", "oracle"], "--scorer: got 'oracle', expected mean_probability"),
        (["search", "a", "--scorer", "my.py"], "expected the function's name behind it, as in my.py:NAME"),
        (["search", "a", "-s", "my.py"], "expected the function's name behind it, as in my.py:NAME"),
        (["search", "a", "-s", "beam"], "the name of a strategy; did you mean beam_search"),
        (["search", "a", "--scorer", ""], "--scorer: got '', expected mean_probability"),
        (["search", "a", "--scorer", "oracle:folder"], "--scorer: got the reader 'oracle', expected one of"),
        (["search", "a", "--scorer", "outcome:"], "expected READER:FOLDER"),
        (["search", "a", "--scorer", "verifier"], "task prompt has no answer to compare with"),
        (
            ["search", "a", "--scorer-timeout", "0"],
            "--scorer-timeout: got 0.0, expected a number of seconds > 0",
        ),
        (["strategies", "nonsense"], "NAME: got 'nonsense', expected the name of a strategy"),
        (["compare", "--resume"], "--resume: needs --save FOLDER"),
        (["search", "a", "--resume"], "--resume: needs --save FOLDER"),
        (["search", "a", "--budget-tokens", "0"], "--budget-tokens: got 0, expected >= 1"),
        (["search", "a", "--budget-seconds", "nan"], "--budget-seconds: got nan, expected"),
        (["search", "", "-o", "n=2"], "prompt"),
        (
            ["search", "a", "-s", "beam_search", "-o", "n=5", "-o", "beam_width=2"],
            "--option beam_width: got 2",
        ),
        (["search", "a" * 2000], "2000 tokens"),
        (["compare", "--limit", "0"], "--limit: got 0"),
        (["compare", "--parallel", "0"], "--parallel: got 0"),
        (["compare", "--shots", "-1"], "--shots: got -1"),
        (["compare", "--shots", "5", "--tasks", "a.jsonl"], "--shots: only for the default problems"),
        (["compare", "--shots", "100000"], "ask for fewer"),
        (["compare", "--sparse", "0"], "--sparse: got '0', expected a number of pages, or a share"),
        (
            ["search", "a", "--sparse", "1/8", "--sparse-share", "all"],
            "--sparse-share: got 'all', expected one of 'branch'",
        ),
        (["search", "a", "--sparse-share", "all"], "--sparse-share: got 'all', expected one of 'branch'"),
        (
            ["search", "a", "--sparse", "4"],
            "--sparse-dense-layers: got 2, expected fewer than the model's 2 layers",
        ),
        (["compare", "-s", "ets", "-s", "ets"], "given twice"),
        (["search", "a", "--budget-cost", "-1"], "--budget-cost: got -1.0, expected a number of eFLOPs > 0"),
        (["plan-budget", "--context", "0"], "--context: got 0, expected at least 1"),
        (["plan-budget", "--tokens", "1"], "--tokens: got 1, expected at least 2"),
        (["plan-budget", "--bandwidth", "nan"], "--bandwidth: got nan, expected a positive number"),
        (["plan-budget", "-c", "500", "--tokens", "100"], "exceeds the model's 512 positions"),
        (
            [*PLAN, "-c", "64", "--tokens", "9", "--share", "none"],
            "--share: got 'none', expected branch or tree",
        ),
        (
            [*PLAN, "-c", "64", "--tokens", "9", "--dense-layers", "3"],
            "--dense-layers: got 3, expected 0 to the model's 2 layers",
        ),
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
    assert message in error_line(err)
    assert err.splitlines()[-1].startswith("hint: ")


def test_a_model_without_a_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["search", "a", "-m", ""]) == 2
    assert "--model: got '', expected" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["search", "a", "-m", "/no/such/model"], "--model: there is no file or directory /no/such/model"),
        (
            ["search", "a", "-m", "{folder}/tiny.gguf", "--scorer", "outcome:/no/such/model"],
            "--scorer: there is no folder /no/such/model",
        ),
        (
            ["search", "a", "-m", "{folder}/cut.gguf"],
            "cut.gguf is damaged: tokenizer.ggml.tokens ends behind the end of the file",
        ),
        ([*PLAN, "-m", "/no/such/model"], "no file or directory /no/such/model"),
        (
            [*PLAN, "-m", "{folder}/cut.gguf"],
            "cut.gguf is damaged: tokenizer.ggml.tokens ends behind the end of the file",
        ),
        (["search", "--tasks", "/no/such/file"], "cannot be read: No such file"),
        (["compare", "--tasks", "{folder}/open.jsonl"], "task 1 has no answer to compare with"),
    ],
)
def test_failures(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert run([argument.format(folder=folder) for argument in arguments]) == 1
    assert message in last_error(capsys)
