"""Policies from measurements: bins, the best setting of each, and held-out accuracy, worked out by hand."""

from dataclasses import dataclass

import pytest
from plain_scripts import number
from scripted import scorer, scripted_decoder
from tts_decode.search import (
    Measured,
    Setting,
    beam_search,
    best_of_n,
    fit_policy,
    measure_settings,
    revisions,
)

SETTINGS = [Setting(best_of_n), Setting(beam_search), Setting(revisions, {"num_sequential": 2})]


def test_each_bin_takes_what_solved_most_of_it_then_what_was_cheaper():
    """Easy: all solve one, the second costs least. Hard: the third alone solves both."""
    measured = [
        Measured(0.9, (True, True, False), (10, 5, 5)),
        Measured(0.2, (False, True, True), (9, 9, 9)),
        Measured(0.8, (False, False, True), (10, 5, 6)),
        Measured(0.1, (False, False, True), (9, 9, 9)),
    ]
    policy = fit_policy(measured, SETTINGS, bins=2)
    assert policy.edges == [0.8]
    assert [str(setting) for setting in policy.settings] == ["beam_search()", "revisions(num_sequential=2)"]
    assert policy.about == {
        "questions": [2, 2],
        "accuracy": [[0.5, 0.5, 0.5], [0.0, 0.5, 1.0]],
        "tokens": [[10.0, 5.0, 5.5], [9.0, 9.0, 9.0]],
        "candidates": ["best_of_n()", "beam_search()", "revisions(num_sequential=2)"],
        "accuracy_of_single_settings": [0.25, 0.5, 0.75],
        "cross_validated": 0.75,
    }


def test_held_out_questions_are_searched_by_what_the_others_chose():
    """By hand for the test above. From 0.9 (settings 1 and 2 solve it, 2 is cheaper) and 0.8 (3): edge 0.9,
    so the held-out 0.2 and 0.1 are hard and take the third, which solves both. From 0.2 (2 and 3 solve it,
    equally dear) and 0.1 (3): edge 0.2, and 0.9 and 0.8 are easy and take the second, which solves one."""
    measured = [
        Measured(0.9, (True, True, False), (10, 5, 5)),
        Measured(0.2, (False, True, True), (9, 9, 9)),
        Measured(0.8, (False, False, True), (10, 5, 6)),
        Measured(0.1, (False, False, True), (9, 9, 9)),
    ]
    assert fit_policy(measured, SETTINGS, bins=2).about["cross_validated"] == 3 / 4
    assert fit_policy(measured[:3], SETTINGS, bins=2).about["cross_validated"] is None


@dataclass(frozen=True)
class Question:
    prompt: str
    right: str

    def verify(self, text):
        return float(text == self.right)


def test_settings_are_measured_on_fresh_searches():
    """Of one step each: with a scorer that knows, each setting finds the answer that is among its samples."""

    def script(prefix, k):
        return f"= {number(prefix) % 3 + k}", "eos"

    decoder = scripted_decoder(script)
    questions = [Question("a: ", f"= {number('a: ') % 3 + 5}"), Question("b: ", "none")]
    known = scorer(lambda text: min(1.0, int(text.split()[1]) / 10))
    settings = [Setting(best_of_n), Setting(revisions, {"num_sequential": 1})]
    measured = decoder.run(measure_settings(decoder, questions, settings, n=3, scorer=known, num_probes=2))
    first = number("a: ") % 3
    assert measured[0].mean_score == pytest.approx((first / 10 + (first + 1) / 10) / 2)
    assert [question.solved[1] for question in measured] == [False, False]
    assert [len(question.tokens) for question in measured] == [2, 2]
    assert all(count > 0 for question in measured for count in question.tokens)
    assert decoder.stats().branches == 0


def test_questions_without_answers_are_refused():
    @dataclass(frozen=True)
    class Open:
        prompt: str
        verify: None = None

    decoder = scripted_decoder(lambda prefix, k: ("a", "eos"))
    with pytest.raises(ValueError, match="questions: got one without a verifier"):
        decoder.run(measure_settings(decoder, [Open("q")], SETTINGS, n=4, scorer=scorer(len)))
    with pytest.raises(ValueError, match="num_sequential: got 2 of revisions, expected a divisor of n = 3"):
        decoder.run(measure_settings(decoder, [Open("q")], SETTINGS[2:], n=3, scorer=scorer(len)))
