"""Covers the options of all strategies: names, types and order, and that docstrings describe them."""

from __future__ import annotations

import inspect
import re
from collections import defaultdict

import pytest
from search_vocabulary import OWN, SIZES, VOCABULARY, place, word_for
from tts_decode.search import STRATEGIES, Strategy

OURS = {name: made for name, made in STRATEGIES.items() if made.family != "own"}  # not those of other tests
USERS: dict[str, list[str]] = defaultdict(list)
for made in OURS.values():
    for option in made.parameters:
        USERS[option].append(made.name)


@pytest.mark.parametrize("strategy", OURS.values(), ids=lambda strategy: strategy.name)
def test_options_are_of_the_vocabulary_or_of_one_strategy(strategy: Strategy[...]) -> None:
    alone = {option for option in strategy.parameters if word_for(option) is None}
    assert alone == OWN.get(strategy.name, set())


def test_what_two_strategies_have_is_in_the_vocabulary() -> None:
    assert {o: users for o, users in USERS.items() if len(users) > 1 and word_for(o) is None} == {}


def test_the_vocabulary_holds_what_is_shared() -> None:
    """A name that one strategy has alone is that strategy's own; a pattern, or a size, may be of one."""
    shared = [w.name for w in VOCABULARY if "*" not in w.name and w.name not in SIZES]
    assert [name for name in shared if len(USERS[name]) < 2] == []
    assert set(SIZES) <= {w.name for w in VOCABULARY}
    assert {w.name for w in VOCABULARY if "*" in w.name} <= {
        w.name for o in list(USERS) if (w := word_for(o))
    }
    assert len({w.name for w in VOCABULARY}) == len(VOCABULARY)


def test_annotations_are_those_of_the_vocabulary() -> None:
    for strategy in OURS.values():
        for option, parameter in strategy.parameters.items():
            where = f"{strategy.name}({option}: {parameter.annotation})"
            kind = str(parameter.annotation).removesuffix(" | None")
            word = word_for(option)
            if option.startswith(("num_", "max_")):
                assert kind == "int", where
            if word is not None and (word.kind == "Literal" or (option == "decide_by" and kind != word.kind)):
                values = re.findall(r"'(\w+)'|\"(\w+)\"", kind)
                assert kind.startswith("Literal["), where
                assert {a or b for a, b in values} <= set(re.findall(r'"(\w+)"', word.meaning)), where
            elif word is not None:
                assert kind == word.kind, where


def test_a_strategy_with_a_scorer_decides_by_the_same_rules() -> None:
    voting = {"self_consistency", "magicore"}  # the vote is what they are
    for strategy in OURS.values():
        if "scorer" in strategy.parameters and strategy.name not in voting:
            kind = str(strategy.parameters["decide_by"].annotation)
            assert kind == "DecideBy" or {"max", "last", "weighted", "majority"} <= set(
                re.findall(r"['\"](\w+)['\"]", kind)
            ), strategy.name


def test_an_option_may_be_none_in_all_strategies_or_in_none() -> None:
    for option, users in USERS.items():
        kinds = {str(OURS[name].parameters[option].annotation).endswith(" | None") for name in users}
        assert option == "scorer" or len(kinds) == 1, option


@pytest.mark.parametrize("strategy", OURS.values(), ids=lambda strategy: strategy.name)
def test_options_are_keyword_only_and_in_order(strategy: Strategy[...]) -> None:
    run, *options = inspect.signature(strategy.body).parameters.values()
    assert run.name == "run"
    assert {option.kind for option in options} == {inspect.Parameter.KEYWORD_ONLY}
    assert strategy.size in SIZES
    places = [place(option.name, strategy.size) for option in options]
    assert places == sorted(places), [option.name for option in options]
    required = [o.name for o in options if o.default is inspect.Parameter.empty]
    assert required in ([], ["scorer"])


@pytest.mark.parametrize("strategy", OURS.values(), ids=lambda strategy: strategy.name)
def test_the_docstring_describes_every_option(strategy: Strategy[...]) -> None:
    described = set()
    for head in re.findall(r"^        (\w+(?:, \w+)*): \S", strategy.__doc__ or "", re.MULTILINE):
        described |= set(head.split(", "))
    assert set(strategy.parameters) <= described
