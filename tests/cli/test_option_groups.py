"""Options that fill dataclasses: their defaults, and the way from a flag to what is set."""

from __future__ import annotations

import inspect
import json
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated

import pytest
import typer
from tts_decode import SamplingParams
from tts_decode.cli.compare import compare
from tts_decode.cli.errors import UsageError
from tts_decode.cli.filled import filled
from tts_decode.cli.groups import SamplingOptions
from tts_decode.cli.search import search
from tts_decode.cli.sweep import sweep
from tts_decode.core.stop_when import closed_boxed
from typer.testing import CliRunner


@dataclass(frozen=True)
class Fruit:
    apples: Annotated[int, typer.Option("--apples", "-a", help="How many.")] = 2
    kinds: Annotated[list[str], typer.Option()] = field(default_factory=lambda: ["red"])


def run(*arguments: str) -> object:
    seen: list[object] = []
    app = typer.Typer()

    @app.command()
    @filled
    def eat(fruit: Fruit, name: Annotated[str, typer.Argument()], fast: bool = False) -> None:
        """Eat fruit."""
        seen.append((fruit, name, fast))

    result = CliRunner().invoke(app, arguments)
    return seen[0] if seen else result.output


def test_fields_and_plain_parameters_are_options() -> None:
    assert run("Eve") == (Fruit(2, ["red"]), "Eve", False)
    given = ("Eve", "-a", "5", "--kinds", "green", "--kinds", "brown", "--fast")
    assert run(*given) == (Fruit(5, ["green", "brown"]), "Eve", True)
    assert "Eat fruit." in str(run("--help"))
    assert run("Eve")[0].kinds is not run("Eve")[0].kinds  # type: ignore[index]  # no list is shared


def test_search_compare_and_sweep_have_the_same_options_and_defaults() -> None:
    defaults = [
        {p.name: p.default for p in inspect.signature(command).parameters.values()}
        for command in (search, compare, sweep)
    ]
    for first in defaults:
        for second in defaults:
            for name in (first.keys() & second.keys()) - {"save", "strategy"}:
                assert first[name] == second[name], name
    shared = set(defaults[0]) - {"prompt", "raw", "seed"}
    assert shared <= set(defaults[1])
    assert shared <= set(defaults[2])


def test_every_sampling_parameter_that_changes_the_text_has_a_flag() -> None:
    renamed = {"stop_token": "stop_token_ids", "suppress": "suppress_token_ids"}
    flags = {renamed.get(f.name, f.name) for f in fields(SamplingOptions)}
    constraints = {"json_schema", "regex", "grammar"}
    told_elsewhere = {"seed", "constraint", "top_logprobs", "self_certainty"}
    assert {f.name for f in fields(SamplingParams)} - told_elsewhere == flags - constraints


def test_flags_reach_the_parameters(tmp_path: Path) -> None:
    given = SamplingOptions(
        top_k=5,
        top_p=0.9,
        min_p=0.1,
        repetition_penalty=1.2,
        logit_bias=["7=-100", "9=2.5"],
        suppress=[3],
        stop=["\\n", "END"],
        stop_token=[4],
        stop_when="closed_boxed",
        max_tokens=9,
    ).params(11)
    expected = SamplingParams(
        temperature=0.8,
        top_k=5,
        top_p=0.9,
        min_p=0.1,
        repetition_penalty=1.2,
        seed=11,
        logit_bias={7: -100, 9: 2.5},
        suppress_token_ids=[3],
        stop=("\n", "END"),
        stop_token_ids=[4],
        stop_when=closed_boxed,
        max_tokens=9,
        max_step_tokens=64,
    )
    assert given == expected
    short = SamplingOptions().params(0, short=True)
    assert (short.max_tokens, short.max_step_tokens) == (64, 32)
    schema = tmp_path / "schema.json"
    schema.write_text(json.dumps({"type": "object"}))
    assert SamplingOptions(json_schema=schema).params(0).constraint is not None


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"top_p": 0.0}, "--top-p: got 0"),
        ({"top_k": -1}, "--top-k: got -1"),
        ({"min_p": 2.0}, "--min-p: got 2"),
        ({"repetition_penalty": 0.0}, "--repetition-penalty: got 0"),
        ({"logit_bias": ["x=1"]}, "--logit-bias: got 'x=1', expected ID=BIAS"),
        ({"logit_bias": ["5=200"]}, "--logit-bias: got 200"),
        ({"suppress": [-1]}, "--suppress: got -1"),
        ({"stop_token": [-4]}, "--stop-token: got -4"),
        ({"stop_when": "never"}, "--stop-when: got 'never', expected closed_boxed or closed_json"),
        ({"stop": [""]}, "--stop: got ''"),
        ({"regex": "a", "grammar": Path("g")}, "--regex: got --grammar too"),
    ],
)
def test_errors_name_the_flag(given: dict[str, object], told: str) -> None:
    with pytest.raises(UsageError) as caught:
        SamplingOptions(**given).params(0)  # type: ignore[arg-type]
    assert str(caught.value).startswith(told)
