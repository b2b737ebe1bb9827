"""`tts-decode demo`: its puzzle's checker, what it prints, and its page."""

from __future__ import annotations

import json
from itertools import permutations, product
from pathlib import Path
from types import SimpleNamespace

import pytest
from tiny_models import tiny_model
from tts_decode.bench import replicated
from tts_decode.cli import demo as demo_module
from tts_decode.cli.app import run
from tts_decode.cli.demo_puzzle import NUMBERS, TARGET, puzzle, solves
from tts_decode.cli.errors import CommandError


def test_the_checker_agrees_with_python_on_all_expressions() -> None:
    numbers, reached = (6, 2, 4), 0
    for target in (26, 20, 48, 0, 16):
        for order in permutations(numbers):
            for signs in product("+-*", repeat=2):
                text = f"{order[0]} {signs[0]} {order[1]} {signs[1]} {order[2]}"
                value = eval(text)
                assert solves(f" {text} = {value}\n", numbers, target) == (value == target)
                reached += value == target
    assert reached > 8


@pytest.mark.parametrize(
    "text",
    [
        "",
        "26",
        "6 * 4 + 2 + 0",
        "6 * 4",
        "6 * 4 + 6",
        "13 * 2",
        "6 * 4 + 2; import os",
        "6**4+2",
        "(6 * 4) + 2",
        "=26",
    ],
)
def test_what_is_no_solution(text: str) -> None:
    assert not solves(text, (6, 2, 4), 26)


def test_the_prompt_shows_right_solutions_and_not_its_own() -> None:
    *solved, asked = puzzle(NUMBERS, TARGET).split("\n\n")[1:]
    assert len(solved) == 12
    for shown in solved:
        question, answer = shown.split("\nAnswer: ")
        expression, value = answer.split(" = ")
        assert eval(expression) == int(value)
        assert f"Target: {value}." in question
        assert sorted(question.split(". ")[0].removeprefix("Numbers: ").split(", ")) == sorted(
            part for part in expression.split() if part.isdigit()
        )
    assert asked == "Numbers: 6, 4, 2. Target: 26.\nAnswer:"


@pytest.mark.parametrize("n", ["0", "257", "-3"])
def test_a_number_of_branches_out_of_range(n: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["demo", "-n", n]) == 2
    assert f"-n: got {n}, expected 1 to 256 branches" in capsys.readouterr().err


def test_other_work_delays_no_more_than_single_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three steps of 5, 1 and 10 seconds: 4 branches decode 4 tokens in the second one."""
    ticks = iter([0.0, 5.0, 6.0, 16.0])
    monkeypatch.setattr(replicated, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    model = tiny_model("llama")
    found = replicated.replicated_decoding(model, [1, 2, 3, 4], branches=4, steps=3)
    config = model.config
    per_token = config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 2 * 4
    assert found == replicated.Replicated(kv_bytes=4 * (4 + 2) * per_token, tokens_per_second=4.0)


@pytest.mark.model
def test_what_the_demo_says(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    one_thread: None,
) -> None:
    page = tmp_path / "demo.html"
    assert run(["demo", "-n", "32", "--out", str(page), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["greedy"]["right"] is False
    assert said["search"]["right"] >= 1
    assert solves(said["search"]["text"], NUMBERS, TARGET)
    # 30 layers, 3 KV heads, head_dim 64, keys and values; the prompt and all but the last new token of 3.
    element = said["replicated"]["kv_bytes"] / (32 * (said["prompt_tokens"] + 2) * 30 * 3 * 64 * 2)
    assert element in (2, 4)
    shared = (said["prompt_tokens"] + 32 * 24) * 30 * 3 * 64 * 2 * element
    assert 0 < said["shared"]["kv_bytes"] < 2 * shared
    assert "6 * 4 + 2 = 26" in page.read_text(encoding="utf-8")

    def broken(*_given: object) -> None:
        raise CommandError("no comparison")

    with monkeypatch.context() as patch:  # the answers are told before the comparison
        patch.setattr(demo_module, "replicated_decoding", broken)
        assert run(["demo", "-n", "8", "--out", str(page)]) == 1
    assert "the best of 8 branches" in capsys.readouterr().out

    monkeypatch.setattr(demo_module, "memory_bytes", lambda: 1 << 20)
    assert run(["demo", "-n", "8", "--out", str(page)]) == 2
    assert "-n: got 8; a cache for each takes" in capsys.readouterr().err
