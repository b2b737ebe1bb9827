"""Parsing of replies on graphs: lists, choices, rankings, dependencies."""

import random

import pytest
from tts_decode.search.answers import spoken
from tts_decode.search.graphs.parsing import choice, listed, ranking, with_needs
from tts_decode.select import ancestors, earlier_needs, longest_path

pytestmark = pytest.mark.usefixtures("one_thread")


def test_lists_are_read_leniently():
    text = "Sure:\n1. one (needs: none)\n 2) two [Needs: 1]\n- three (needs 1, 2)\nno item\n4.5 is a number"
    items = listed(text, 5)
    assert items == ["one (needs: none)", "two [Needs: 1]", "three (needs 1, 2)"]
    assert with_needs(items) == (["one", "two", "three"], [[], [0], [0, 1]])
    assert listed(text, 1) == ["one (needs: none)"]
    assert listed("nothing here", 5) == []


def test_rankings_name_each_once():
    rng = random.Random(0)
    for _ in range(100):
        n = rng.randint(1, 6)
        named = [rng.randint(0, 8) for _ in range(rng.randint(0, 8))]
        order = ranking(" > ".join(map(str, named)), n)
        assert sorted(order) == list(range(n))
        valid = list(dict.fromkeys(k - 1 for k in named if 1 <= k <= n))
        assert order[: len(valid)] == valid
        assert order[len(valid) :] == sorted(order[len(valid) :])
    assert choice("Not 9, number 2 of 3", 3) == 1
    assert choice("none", 3) is None
    assert spoken("<think>1?</think>\n2 ") == "2"


def test_dependencies_form_a_dag_whatever_is_written():
    rng = random.Random(0)
    for _ in range(200):
        n = rng.randint(0, 7)
        needs = earlier_needs([[rng.randint(-2, 9) for _ in range(rng.randint(0, 4))] for _ in range(n)])
        assert all(0 <= j < i for i, wanted in enumerate(needs) for j in wanted)

        def chain(i, needs=needs):
            return 1 + max((chain(j) for j in needs[i]), default=0)

        assert longest_path(needs) == max((chain(i) for i in range(n)), default=0)
        if n:
            start = rng.randrange(n)
            found = ancestors(needs, [start])
            assert found == sorted(found)
            assert start in found
            assert all(j in found for i in found for j in needs[i])
            assert all(i == start or any(i in needs[k] for k in found) for i in found)
