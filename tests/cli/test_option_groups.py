"""Options that fill dataclasses: their defaults, and the way from a flag to what is set."""

from __future__ import annotations

import inspect
import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, get_args

import pytest
import typer
from tts_decode import SamplingParams
from tts_decode.cli.compare import compare
from tts_decode.cli.errors import UsageError
from tts_decode.cli.filled import filled
from tts_decode.cli.groups import SamplingOptions
from tts_decode.cli.search import search
from tts_decode.cli.sweep import sweep
from tts_decode.core.constraints.grammars import Choice, Compiled
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


# Options of one name that differ between the three commands, and why.
DIFFER = {
    "strategy": "search runs one, the others run several and set them beside each other",
    "save": "a sweep is its folder: it needs one, and writes tables there",
    "parallel": "a batch of a sweep holds all seeds; search has none, as it runs one problem after the other",
}
# Options of search that the others lack, and why.
SEARCH_ONLY = {
    "prompt": "compare and sweep need answers that are known",
    "raw": "as the prompt",
    "seed": "sweep has --seeds",
}


def options(command: Callable[..., None]) -> dict[str, tuple[object, object]]:
    """Of each option its default, and its type with names, help and panel."""
    found = {}
    for name, parameter in inspect.signature(command).parameters.items():
        kind, about = get_args(parameter.annotation)
        shown = {key: value for key, value in vars(about).items() if key != "default"}
        found[name] = (parameter.default, (kind, shown))
    return found


def test_search_compare_and_sweep_have_the_same_options_and_defaults() -> None:
    every = {command.__name__: options(command) for command in (search, compare, sweep)}
    for first, second in itertools.combinations(every.values(), 2):
        for name in first.keys() & second.keys() - DIFFER.keys():
            assert first[name] == second[name], name
    shared = every["search"].keys() - SEARCH_ONLY.keys()
    assert shared <= every["compare"].keys()
    assert shared <= every["sweep"].keys()
    assert all(any(name in found for found in every.values()) for name in {**DIFFER, **SEARCH_ONLY})


# Field of SamplingParams -> the flag, a value as typed, and the value that it becomes.
FLAGS: dict[str, tuple[str, object, object]] = {
    "temperature": ("temperature", 0.5, 0.5),
    "top_k": ("top_k", 5, 5),
    "top_p": ("top_p", 0.9, 0.9),
    "min_p": ("min_p", 0.1, 0.1),
    "repetition_penalty": ("repetition_penalty", 1.2, 1.2),
    "max_tokens": ("max_tokens", 9, 9),
    "max_step_tokens": ("max_step_tokens", 8, 8),
    "stop": ("stop", ["\\n", "END"], ("\n", "END")),
    "stop_token_ids": ("stop_token", [4], (4,)),
    "suppress_token_ids": ("suppress", [3], (3,)),
    "frequency_penalty": ("frequency_penalty", 0.5, 0.5),
    "presence_penalty": ("presence_penalty", -0.5, -0.5),
    "logit_bias": ("logit_bias", ["9=2.5", "7=-100"], ((7, -100.0), (9, 2.5))),
    "top_logprobs": ("top_logprobs", 3, 3),
    "self_certainty": ("self_certainty", True, True),
    "constraint": ("choice", ["yes", "no"], Choice(["yes", "no"])),
    "stop_when": ("stop_when", "closed_boxed", closed_boxed),
}
ELSEWHERE = {"seed": "--seed, and --seeds of sweep, beside the other settings of the run"}


@pytest.mark.parametrize("name", [f.name for f in fields(SamplingParams)])
def test_every_sampling_parameter_has_a_flag(name: str) -> None:
    """And the flag sets this field alone."""
    if name in ELSEWHERE:
        assert name in options(search)
        return
    flag, typed, meant = FLAGS[name]
    for command in (search, compare, sweep):
        assert flag in options(command)
    given, plain = SamplingOptions(**{flag: typed}).params(0), SamplingOptions().params(0)  # type: ignore[arg-type]
    assert getattr(given, name) == meant != getattr(plain, name)
    others = {f.name for f in fields(SamplingParams)} - {name}
    assert all(getattr(given, other) == getattr(plain, other) for other in others)


def test_the_other_forms_of_a_constraint_have_flags() -> None:
    forms = {"JSONSchema": "json_schema", "Regex": "regex", "Grammar": "grammar", "Choice": "choice"}
    assert {kind.__name__ for kind in Compiled.__subclasses__()} == set(forms)
    assert set(forms.values()) <= {f.name for f in fields(SamplingOptions)}


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
        ({"regex": "a", "choice": ["b"]}, "--regex: got --choice too"),
        ({"choice": [""]}, "--choice: got ''"),
        ({"top_logprobs": -1}, "--top-logprobs: got -1"),
    ],
)
def test_errors_name_the_flag(given: dict[str, object], told: str) -> None:
    with pytest.raises(UsageError) as caught:
        SamplingOptions(**given).params(0)  # type: ignore[arg-type]
    assert str(caught.value).startswith(told)
