"""Votes count answers by what they mean, in every strategy, and hold up no other search meanwhile."""

from __future__ import annotations

import asyncio
import itertools
import threading

import pytest
from scripted import NEEDS_A_MODEL, run_scripted, scripted_decoder, text_options, words
from tts_decode.grading import groups, is_correct, mathematics
from tts_decode.rewards import verifier
from tts_decode.search import (
    STRATEGIES,
    Labels,
    SearchRun,
    adaptive_consistency,
    answers_of,
    get_strategy,
    meaning,
    model_switch,
    self_calibration,
    self_consistency,
    strategy,
)
from tts_decode.search.decisions import Decision
from tts_decode.search.result import Candidate
from tts_decode.select import extract_answer

HALVES = [r"\boxed{\frac12}", r"\boxed{0.5}", r"\boxed{1/2}"]
pytest.importorskip("math_verify")


def said(*texts: str):
    """A script that gives these answers in turn."""
    return lambda prefix, k: (texts[(len(prefix) + k) % len(texts)], "eos")


def candidates(*texts: str) -> list[Candidate]:
    return [Candidate(text, (1,), -1.0 - i, None, (), "eos", i) for i, text in enumerate(texts)]


def answers(*texts: str, extract=str) -> list[str | None]:
    return asyncio.run(answers_of(candidates(*texts), extract))


@pytest.mark.parametrize("rule", ["majority", "weighted"])
def test_three_spellings_of_a_half_beat_two_threes(rule):
    texts = [r"\boxed{3}", HALVES[0], "The answer is 0.5", r"\boxed{3.0}", HALVES[2]]
    index, votes = asyncio.run(Decision(rule)(candidates(*texts)))
    assert votes == {r"\frac12": 3.0, "3": 2.0}
    assert index == 1  # the likeliest of the three


NUMBERS = ("5", "1,250")
UNITS = ("hours", "minutes", "kg", "square meters", "meters", "")
SENTENCES = ("So it takes {} in all.", "We get 3 + 4 = {}", "**{}**", "The answer is {}.", r"\boxed{{{}}}")


def test_votes_and_grading_agree_on_units():
    """A number without a unit is the number with one; two units are two answers."""
    for number, unit, sentence in itertools.product(NUMBERS, UNITS, SENTENCES):
        for other, asked in itertools.product(UNITS, SENTENCES):
            text, second = (
                sentence.format(f"{number} {unit}".strip()),
                asked.format(f"{number} {other}".strip()),
            )
            same = not unit or not other or unit == other
            first, of_second = answers(text, second, extract=extract_answer)
            assert (first == of_second) == same, (text, second, first, of_second)
            assert is_correct(text, f"{number} {other}".strip()) == same, (text, other)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("It takes 5 hours.", "5 hours"),
        ("It weighs 5kg", "5 kg"),
        ("So **1,200** meters squared", "1200 meters squared"),
        ("That makes $5$ cm.", "5 cm"),
        ("He has 5 in all", "5"),
        ("It is 5 in", "5 in"),
        ("It drives 5 miles per hour", "5"),
        ("It drives 5 miles/hour", "5"),
        ("There are 5 apples.", "5"),
        ("So m = 5 m", "5"),
    ],
)
def test_the_unit_that_an_answer_keeps(text, answer):
    assert extract_answer(text) == answer


def test_two_units_are_two_votes_whatever_comes_first():
    texts = ["It takes 5 minutes.", "So 5 hours.", "It takes 5 hours", "5"]
    index, votes = asyncio.run(Decision("majority")(candidates(*texts[:3])))
    assert (index, votes) == (1, {"5 hours": 2.0, "5 minutes": 1.0})
    _, votes = asyncio.run(Decision("majority")(candidates(*texts[1:])))
    assert votes == {"5 hours": 3.0}


@pytest.mark.parametrize(
    "name", [name for name, made in STRATEGIES.items() if made.family != "own" and name not in NEEDS_A_MODEL]
)
def test_every_strategy_counts_spellings_of_one_answer_together(name):
    options = {name: value for name, value in text_options(name).items() if name != "extract"}
    decoder = scripted_decoder(said(*HALVES), logprobs_of=lambda prefix, text: [-1.0] * len(words(text)))
    result = run_scripted(decoder, get_strategy(name), "Q: ", **options)
    assert set(result.votes) <= {r"\frac12", "0.5", "1/2"}
    assert len(result.votes) == 1


def test_searches_stop_as_soon_as_spellings_agree():
    result = run_scripted(
        scripted_decoder(said(*HALVES)), adaptive_consistency, "Q: ", max_samples=40, parallel=4
    )
    assert len(result.candidates) == 4  # as for four equal texts
    assert list(result.votes.values()) == [4.0]
    result = run_scripted(
        scripted_decoder(said(*HALVES)),
        self_calibration,
        "Q: ",
        max_samples=8,
        parallel=2,
        scorer=verifier(lambda _: 0.5),
        decide_by="majority",
    )
    assert len(result.candidates) == 2
    second = scripted_decoder(said("never asked"))
    run_scripted(scripted_decoder(said(*HALVES)), model_switch, "Q: ", n=3, decoders=[second])
    assert second.complete.calls == []


def test_labels_are_compared_as_texts():
    assert answers("1", "1.0", "1") == ["1", "1", "1"]
    assert answers("1", "1.0", "1", extract=Labels(str)) == ["1", "1.0", "1"]
    result = run_scripted(
        scripted_decoder(said("1", "1.0", "1")), self_consistency, "Q: ", n=3, extract=Labels(str)
    )
    assert result.votes == {"1": 2.0, "1.0": 1.0}


def test_who_abstains_has_no_answer():
    assert answers("1/2", "none", "0.5", extract=lambda text: None if text == "none" else text) == [
        "1/2",
        None,
        "1/2",
    ]
    assert answers() == []


def test_where_sameness_is_not_transitive_the_order_decides(monkeypatch):
    """A is B, B is C, A is not C."""
    near = {frozenset("ab"), frozenset("bc")}
    monkeypatch.setattr(groups, "same_answer", lambda one, other: frozenset((one, other)) in near)
    assert answers("a", "b", "c", "b") == ["a", "a", "c", "a"]
    assert answers("b", "a", "c") == ["b", "b", "b"]
    assert answers("c", "a", "b") == ["c", "a", "c"]


def test_numbers_and_words_start_no_process(monkeypatch):
    def started(_):
        raise AssertionError("a process was started")

    monkeypatch.setattr(mathematics.Mathematics, "_started", started)
    monkeypatch.setattr(meaning, "in_thread", started)
    assert answers("7", "7.0", "1,000", "1e3", "Blue", "blue", "yes") == [
        "7",
        "7",
        "1,000",
        "1,000",
        "Blue",
        "Blue",
        "yes",
    ]


def test_hostile_answers_are_votes_like_others():
    hostile = [
        "\x00",
        "\ud800",
        r"\frac{\ud800}{2}",
        "(" * 5000,
        "{" * 30 + "1" + "}" * 30,
        "9" * 100_000,
        "1e9999",
        "9^{9^{9^{9}}}",
        r"\frac{1}{0}",
        "[1,2",
        r"\begin{pmatrix} 1 & 2",
        "=",
        "",
        " ",
    ]
    found = answers(*hostile, *hostile, "1/2", "0.5")
    assert found == [*hostile, *hostile, "1/2", "1/2"]


def test_other_searches_go_on_while_formulas_are_compared(monkeypatch):
    """A comparison that takes long: the loop turns until the test lets it end."""
    free = threading.Event()

    def slow(answers):
        assert free.wait(60)
        return groups.group(answers)

    monkeypatch.setattr(meaning, "group", slow)

    async def search():
        waiting = asyncio.ensure_future(answers_of(candidates("1/2", "0.5"), str))
        for _ in range(100):
            await asyncio.sleep(0)
        assert not waiting.done()
        free.set()
        return await waiting

    assert asyncio.run(search()) == ["1/2", "1/2"]


def test_a_grouping_that_takes_too_long_ends_by_notation(monkeypatch, caplog):
    monkeypatch.setattr(groups, "_SECONDS", -1.0)
    groups.warn_once.cache_clear()
    assert groups.group(["x+2", "2+x", "x + 2", "3", "3.0"]) == [0, 1, 0, 3, 3]
    assert caplog.text.count("answers are grouped by their notation only") == 1


def test_a_strategy_that_does_not_wait_for_its_result_is_told_so():
    async def hasty(run: SearchRun):
        return run.result()

    made = strategy("for this test")(hasty)
    del STRATEGIES["hasty"]
    with pytest.raises(TypeError, match=r"return await run.result"):
        run_scripted(scripted_decoder(said("1")), made, "Q: ")
