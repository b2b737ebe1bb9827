"""Answers that mean the same. Expectations follow from a case's construction, or are written by hand."""

from __future__ import annotations

import logging

import pytest
from answer_cases import Case, calculations, harmless, wrong_constants, wrong_roots, wrong_structures
from tts_decode.errors import MissingExtraError
from tts_decode.grading import group, groups, is_correct, mathematics, needs_mathematics, same_answer
from tts_decode.grading.open_calculations import left_open

pytest.importorskip("math_verify")

WRONG = [*wrong_roots(), *wrong_constants(1, 150), *wrong_structures(2, 8)]
HARMLESS = list(harmless(3, 8))


def said_equal(cases: list[Case], *, turned: bool) -> list[Case]:
    return [
        case
        for case in cases
        if same_answer(*((case.expected, case.answer) if turned else (case.answer, case.expected)))
    ]


@pytest.mark.parametrize("turned", [False, True])
def test_no_wrong_answer_counts_as_right(turned: bool) -> None:
    assert len(WRONG) > 500
    assert said_equal(WRONG, turned=turned) == []


@pytest.mark.parametrize("turned", [False, True])
def test_harmless_variants_count_as_right(turned: bool) -> None:
    right = said_equal(HARMLESS, turned=turned)
    missed = [case for case in HARMLESS if case not in right]
    assert len(right) >= 0.97 * len(HARMLESS), missed


@pytest.mark.parametrize(
    ("answer", "expected", "same"),
    [
        (r"\sqrt{3}", "3", False),
        (r"\dfrac{1}{2}", r"\frac12", True),
        (r"\{1,2\}", "(1,2)", False),
        ("x=2,y=1", "(1,2)", False),
        ("x=x+1", "x=x+2", False),
        ("1.4142", r"\sqrt2", False),
        ("1.41421", r"\sqrt2", True),
        (r"\frac{1}{2}", r"50\%", True),
        ("2 1/2", r"\frac52", True),
        ("1 2", "3", False),
        (r"\cos 60^\circ", r"\frac12", True),
        (r"\sqrt{-1}", "i", True),
        ("1010", "1010_2", False),
        (r"x<1 \text{ or } x>2", r"(-\infty,1)\cup(2,\infty)", True),
        ("2a", "2A", False),
        ("on", "no", False),
        (r"\emptyset", r"\{\}", True),
        ("", "", False),
        (r"\frac{1}", r"\frac{1", False),
        ("1e3", "1000", True),
        ("10000000000", "10000000001", False),
        ("9" * 400, "9" * 399 + "8", False),
        ("2024-01-02", "2024-02-01", False),
        ("3/4/2024", "6/8/2024", False),
        ("03/04", "06/08", False),
        ("555-1234", "554-1233", False),
        ("0x10", "0x20", False),
        ("H2O", "HO2", False),
        ("n!", "n", False),
        ("f'", "f", False),
        ("Blue!", "'blue'", True),
        ("3 million", "3", False),
        ("2.5 million", "2,500,000", True),
        (r"3\text{ million dollars}", r"\$3000000", True),
        ("3 dozen", "36", True),
        ("6 squared", "6", False),
        ("7 factorial", "7", False),
        (r"\frac{1}{3}", "0.3333334", False),
        (r"\frac{1}{3}", "0.3333333", True),
        (r"\frac{2}{3}", "0.666666", True),
        (r"-\frac{2}{3}", "-0.666667", True),
        ("5 \u20ac", "\u20ac5", True),
    ],
)
def test_single_pairs(answer: str, expected: str, same: bool) -> None:
    assert same_answer(answer, expected) is same
    assert same_answer(expected, answer) is same


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (r"\dfrac 1 2", r"\frac{1}{2}"),
        (r"\frac9{256}", r"\frac{9}{256}"),
        (r"\frac\pi2", r"\frac{\pi}{2}"),
        ("\u221a(2)", r"\sqrt{2}"),
        ("sqrt 2", r"\sqrt{2}"),
        (r"\sqrt[3]4", r"\sqrt[3]{4}"),
        ("{1,2,3}", r"\{3,2,1\}"),
        ("{3}", "3"),
        (r"\Bbb{R}", r"\mathbb{R}"),
        (r"\R", r"(-\infty,\infty)"),
        (r"\text{all real numbers}", r"\mathbb R"),
        ("(x,y) = (1,2)", "(1,2)"),
        ("x=1, y=2", "1, 2"),
        ("3>x>-2", "(-2,3)"),
        ("3>x>-2", "-2<x<3"),
        ("x>1 and x<3", "(1,3)"),
        ("12 m^2", r"12\text{ m}^2"),
        ("12 m\u00b2", r"12\text{ square meters}"),
        ("60 km/h", r"60\,\frac{\text{km}}{\text{h}}"),
        ("60 miles per hour", r"60\text{ mph}"),
        ("9.8 m/s^2", r"9.8\text{ m/s}^2"),
        ("1.5 x 10^8", r"1.5\times 10^{8}"),
        ("1.5\u00d710\u207b\u2078", r"1.5\times 10^{-8}"),
        (r"11,\! 111,\! 100", "11111100"),
        (r"\mathbf{3}", "3"),
        (r"\text{101}_2", "101_2"),
        (r"101_{\text{two}}", "5"),
        ("101\u2082", "101_2"),
        ("three", "3"),
        ("3\\ ", "3"),
        (r"2+3\mathrm{i}", "2+3i"),
        (r"0.1\bar{6}", r"\frac{1}{6}"),
        ("10:45 AM", r"10:45\text{ a.m.}"),
        ("3:30", r"3:30\text{ pm}"),
        ("\u2220ABC", r"\angle ABC"),
        ("an ellipse", r"\text{ellipse}"),
        ("Option C", r"\text{C}"),
        (r"{5 \choose 2}", "10"),
        (r"{1 \over 2}", "0.5"),
    ],
)
def test_other_notations_of_one_answer(answer: str, expected: str) -> None:
    assert same_answer(answer, expected)
    assert same_answer(expected, answer)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (r"\angle ACB", r"\angle ABC"),
        ("2, 1", "x=1, y=2"),
        ("x<-1 and x>1", r"(-\infty,-1)\cup(1,\infty)"),
        ("(y,x)=(1,2)", "(x,y)=(1,2)"),
        ("-3<x<2", "3>x>-2"),
        ("x>1 and x<3", "[1,3]"),
        ("{1,2}", "(1,2)"),
        (r"\mathbb{Z}", r"(-\infty,\infty)"),
        ("12 m^3", r"12\text{ m}^2"),
        ("60 km/s", r"60\text{ km/h}"),
        ("10:45 PM", r"10:45\text{ a.m.}"),
        ("101_{three}", "5"),
        (r"\frac 1 3", r"\frac{1}{2}"),
        ("1.5 x 10^8", r"1.5\times 10^{-8}"),
        ("thirteen", "30"),
    ],
)
def test_notations_alike_of_other_answers(answer: str, expected: str) -> None:
    assert not same_answer(answer, expected)
    assert not same_answer(expected, answer)


@pytest.mark.parametrize(
    ("text", "expected", "right"),
    [
        (r"So it is \boxed{\sqrt{3}}.", "3", False),
        (r"So it is \boxed{3}.", "3", True),
        (r"So it is \boxed {3}.", "3", True),
        (r"\boxed{\left\{ 3, 4 \right.}, not 5", "5", False),
        (r"\boxed{[3, 4\}}", "[3,4}", True),
        ("The answer is $3x$.", "3", False),
        ("The answer is $3m$.", "3", True),
        ("The answer is $y = 3$.", "x=3", False),
        ("The answer is $x = 3y$.", "x=3", False),
        ("The answer is $x = 3$.", "x=3", True),
        ("The answer is 2 + 1 = 3.", "x=3", True),
        ("The answer is $(y,x) = (1,2)$.", "(x,y)=(1,2)", False),
        ("The answer is \u20ac5.", r"\$5", False),
        ("The answer is $5$.", "\u20ac5", True),
        ("It is 10:45 p.m.", "10:45 a.m.", False),
        (r"\boxed{3 + 5}", "5", False),
        ("The answer is 2 + 3 = 5.", "5", True),
        ("The answer is 2 + 3.", "3", False),
        ("so it is 12 apples", "12", True),
        ("The answer is unclear, 7", "7", True),
        ("Thus x^2 = 9, and so $x = 3$.", "3", True),
        (r"we get $\sqrt{3}$.", "3", False),
        ("about 2/3", "3", False),
        (r"cut off at \boxed{\sqrt{3}", "3", False),
        ("3 + 4 = 7\n#### 7", "7", True),
        ("#### 1,234", "1234", True),
        ("The answer is blue.", "Blue", True),
        (r"Hence $\frac{1}{2}$.", r"\frac{1}{2}", True),
        ("the point (1, 2)", "(1,2)", True),
        ("the point (1, 2)", "2", False),
        ("", "3", False),
        ("The answer is x = 5 or x = 6.", "6", False),
        ("The answer is 1/2, or 0.5.", "0.5", True),
        ("The answer is at least 5.", "5", False),
        ("The answer is $x > 6$.", "6", False),
        (r"The answer is $\pm 3$.", "3", False),
        ("The answer is minus 6.", "6", False),
        ("The answer is between 5 and 6.", "6", False),
        ("The answer is 3 to 6.", "6", False),
        ("The answer is 6 or more.", "6", False),
        ("The answer is the square root of 6.", "6", False),
        ("So it comes to 5.", "5", True),
        ("It takes 5 hours.", "5 minutes", False),
        ("It takes 5 hours in all.", "5 hr", True),
        ("It takes 5 hours.", "5", True),
        ("It takes 1 hour and 30 minutes.", "30", False),
        ("The answer is 3 oranges.", "3 apples", False),
        ("He has 3 apples in total.", "3 apples", True),
        ("It costs 5 million dollars.", "5", False),
        ("Tom had 5.\nThe answer is no.", "5", False),
        ("The answer is their sum.\n3 + 4 = 7", "7", True),
        ("To calculate 3 + 4, you", "7", False),
        ("Tom has 6 * 7 eggs", "42", False),
        (r"that is $3 \cdot 4$", "12", False),
        (r"that is $3.5 \times 10^4$", "35000", True),
        ("7 = 3 + 4", "7", True),
        ("8 = 3 + 4", "7", False),
        ("$15 - $8", "7", False),
        ("We need to find 12 / 4", "3", False),
        ("12 \u00f7 4", "3", False),
        ("so it is 1/2", "0.5", True),
        ("10 - 3 = 7", "7", True),
        ("so 5 - 2 gives 3", "3", True),
        ("so the root is 2 + 3i", "2+3i", True),
        ("What is 2^3?", "8", False),
        ("The answer is 2^3.", "8", True),
        ("8 = 2^3", "8", True),
        ("6 = 2^3", "8", False),
        ("2 + 6 = 2^3", "6", False),
        (r"$\frac{5}{6} = \frac{1}{2} + \frac{1}{3}$", r"\frac{5}{6}", True),
        ("Tom works 2 + 3 hours", "5 hours", False),
        ("x = 2 + 3", "x = 5", False),
        ("there are 10^6 of them", "1000000", True),
        (r"an area of $12 \text{ m}^2$", "12", True),
        (r"we get $\sqrt{3}$", "1.73205", True),
        (r"we get $\sqrt{18}$", r"3\sqrt{2}", True),
        (r"so it is $3 \cdot \sqrt{2}$", r"3\sqrt{2}", True),
        ("it takes 5 min", "5 minutes", True),
        ("on 2024-01-02", "2024-01-02", True),
        ("so it is 50/100", r"50\%", True),
        ("so (x + 1)^2", "x^2 + 2x + 1", True),
        ("What is 12\u00b2?", "12", False),
        ("So we get .34", "34", False),
        ("So we get $.34$.", "0.34", True),
        ("so it is ...5", "5", True),
    ],
)
def test_the_answer_of_a_text(text: str, expected: str, right: bool) -> None:
    assert is_correct(text, expected) is right


@pytest.mark.parametrize(
    "text", ["{}", "What is {}?", "Let me compute ${}$.", "We have to find {}, so", r"Find \({}\)."]
)
def test_a_text_that_repeats_a_calculation_gives_no_answer(text: str) -> None:
    cases = list(calculations(4, 12))
    assert [case for case in cases if is_correct(text.format(case.answer), case.expected)] == []


def test_a_marked_calculation_is_right_by_equality() -> None:
    cases = [case for case in calculations(4, 12) if not case.answer.startswith("$")]
    right = [case for case in cases if is_correct(rf"So \boxed{{{case.answer}}}", case.expected)]
    assert len(right) >= 0.97 * len(cases), [case for case in cases if case not in right]


def test_harmless_variants_are_no_open_calculations() -> None:
    assert [case for case in HARMLESS if left_open(case.answer, case.expected)] == []


def test_groups_are_by_meaning_and_led_by_the_first() -> None:
    answers = [r"\frac12", "3", None, "0.5", "3.0", r"\dfrac{1}{2}", r"\sqrt{3}", "", "1/2"]
    assert group(answers) == [0, 1, None, 0, 1, 0, 6, 7, 0]
    assert group([]) == []


def test_what_needs_mathematics() -> None:
    for plain in ("3", "-1,234.5", "Blue", r"\text{even}", "B", "5 apples", "x = 5"):
        assert not needs_mathematics(plain) or plain == "5 apples"
    for formula in (r"\frac{1}{2}", "(1,2)", "2x+1", "1, 2"):
        assert needs_mathematics(formula)


def test_without_math_verify_groups_are_by_notation_and_it_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(mathematics, "installed", lambda _: False)

    def missing(module: str) -> None:
        raise MissingExtraError(f"{module}: not installed")

    monkeypatch.setattr(mathematics, "require", missing)
    groups.warn_once.cache_clear()
    with caplog.at_level(logging.WARNING, "tts_decode"):
        assert group(["v+1", r"\left(v+1\right)", "1+v", "4", "4.0", "four", "few"]) == [0, 0, 2, 3, 3, 3, 6]
    assert caplog.text.count("math_verify: not installed") == 1
    with pytest.raises(MissingExtraError):
        same_answer("v+1", "1+v")
    assert same_answer("2.50", "2.5")
