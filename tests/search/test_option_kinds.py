"""Options of the wrong kind are refused by name before anything is sampled, whatever the strategy."""

from __future__ import annotations

import re
from typing import Any

import pytest
from tiny_searches import run, search_decoder
from tts_decode.search import STRATEGIES, Setting, get_strategy

pytestmark = pytest.mark.usefixtures("one_thread")

OURS = {name: made for name, made in STRATEGIES.items() if made.family != "own"}
WRONG: dict[str, tuple[Any, str]] = {  # of each kind a value, and what is said of it
    "bool": (1, "got int, expected a bool"),
    "Decoder | None": ("qwen", "got str, expected a decoder"),
    "Embed | None": (3, "got int, expected a function of steps"),
    "Extract": (None, "got NoneType, expected a function of a text"),
    "Policy | str | None": (3, "got int, expected a Policy; a str is the path of a saved one"),
    "Scorer": (None, "got NoneType, expected an async function of branches"),
    "Scorer | None": ("best", "got str, expected an async function of branches"),
    "Sequence[Decoder]": (7, "got int, expected a list of decoders"),
    "Sequence[float]": (0.5, "got float, expected a list of numbers"),
    "Sequence[float] | None": ([1.0, "x"], "[1]: got 'x', expected a finite number"),
    "Sequence[str]": ("wait", "got str, expected a list of texts"),
    "Sequence[str] | None": ([None], "[0]: got NoneType, expected a str"),
    "str": (5, "got int, expected a str"),
    "Tests | None": (3, "got int, expected a function of a text"),
    "TextFunction | None": ("find", "got str, expected a function of a text"),
    "Tool | None": ("python", "got str, expected a function of code"),
    "Trigger | None": (0.5, "got float, expected an async function of a branch and a position"),
}
OPTIONS = [(n, o, str(p.annotation)) for n, s in OURS.items() for o, p in s.parameters.items()]
PROMPTS = [(name, option) for name, option, _ in OPTIONS if option.endswith("_prompt")]


@pytest.fixture(scope="module")
def decoder():
    return search_decoder()


def refused(decoder, name, message, **options):
    before = decoder.stats().generated_tokens
    with pytest.raises((TypeError, ValueError), match=f"^{re.escape(message)}"):
        run(decoder, name, **options)
    assert decoder.stats().generated_tokens == before


@pytest.mark.parametrize(("name", "option", "kind"), [row for row in OPTIONS if row[2] in WRONG])
def test_an_option_of_the_wrong_kind_is_named(decoder, name, option, kind):
    value, said = WRONG[kind]
    joint = "" if said.startswith("[") else ": "
    refused(decoder, name, f"{option}{joint}{said}", **{option: value})


@pytest.mark.parametrize(("name", "option"), [row for row in PROMPTS if row != ("revise", "verify_prompt")])
def test_fields_that_no_prompt_has_are_named(decoder, name, option):
    refused(decoder, name, f"{option}: got the field {{anser}}, expected {{", **{option: "{anser}"})
    refused(decoder, name, f"{option}: got the field {{}}, expected {{", **{option: "{}"})
    with pytest.raises(ValueError, match=f"^{option}: got .*; write {{{{ and }}}} for other braces"):
        run(decoder, name, **{option: "a set {"})


def test_a_prompt_may_leave_fields_out_and_write_braces(decoder):
    prompt = "{question[0]} {score:.1f} {{}}"
    assert run(decoder, "ab_mcts", refine_prompt=prompt).answer
    assert run(decoder, "revise", verify_prompt="{ok? ").answer


def test_the_fields_of_each_prompt_are_those_that_its_description_names():
    """By them prompts are checked; the descriptions were written by hand."""
    for name, option in PROMPTS:
        made = OURS[name]
        fields = set(re.findall(r"{(\w+)", made.parameters[option].default))
        told = set(re.findall(r"{(\w+)}", made.body.__doc__))
        assert fields <= told, (name, option)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sequential": 2}, "revisions: unknown option 'sequential'; did you mean num_sequential"),
        ({"refine_prompt": 3}, "refine_prompt: got int, expected a str"),
    ],
)
def test_a_setting_of_a_policy_is_checked_when_it_is_made(options, message):
    with pytest.raises(TypeError, match=message):
        Setting(get_strategy("revisions"), options)
    with pytest.raises(TypeError, match="strategy: got str, expected a Strategy; get_strategy finds"):
        Setting("revisions", options)
