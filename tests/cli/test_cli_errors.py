"""Every user error of the command is one line on stderr."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_commands import PLAN
from tts_decode.cli.app import run

pytestmark = pytest.mark.usefixtures("cache")


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
        (["search", "a", "--max-tokens", "0"], "max_tokens: got 0, expected >= 1"),
        (["search", "a", "--frequency-penalty", "3"], "frequency_penalty: got 3.0, expected a finite number"),
        (
            ["search", "a", "--regex", "a", "--grammar", "b"],
            "--regex: got --grammar too, expected one of them",
        ),
        (["search", "a", "--json-schema", "missing.json"], "--json-schema: "),
        (["search", "a", "--kv-mib", "0"], "--kv-mib: got 0"),
        (["search", "a", "--kv-dtype", "int4"], "--kv-dtype: got 'int4', expected auto or int8"),
        (["search", "a", "--kv-mib", "99999999999"], "more than the system grants"),
        (["search", "a\udc80"], "text: got surrogates not allowed at 1, expected valid Unicode"),
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
    assert message in capsys.readouterr().err.splitlines()[-1]
