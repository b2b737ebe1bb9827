"""The process that compares: hostile formulas end at its limits, and it is replaced when it hangs or dies."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import pytest
from tts_decode.errors import EngineError
from tts_decode.grading import is_correct, math_worker, same_answer
from tts_decode.grading.mathematics import Mathematics, Reply, UnjudgedError

pytest.importorskip("math_verify")


@pytest.fixture
def mathematics():
    made = Mathematics(seconds=2.0)
    yield made
    made.close()


@pytest.mark.parametrize(
    "formula",
    [
        "9^{9^{9^{9}}}",
        "(9^{9^{9}})!",
        r"\sum_{k=1}^{100000000000} k^{k}",
        r"\binom{10^{12}}{10^{11}}",
        r"\prod_{k=1}^{10000000} (x+k)",
        r"(x+y+z+a+b+c)^{400}",
    ],
)
def test_a_formula_without_end_is_not_equal_within_the_limits(mathematics: Mathematics, formula: str) -> None:
    mathematics.equal("x", "x+0")  # starts it
    begin = time.monotonic()
    try:
        assert not mathematics.equal(formula, "5+x-x")
    except UnjudgedError:
        assert mathematics.unjudged.total() == 1
    assert time.monotonic() - begin < 20
    assert mathematics.equal("x+1", "1+x")


class Counted(Mathematics):
    """Keeps the questions that the process is asked."""

    asked: Counter[str]

    def _ask(self, *question: str) -> Reply:
        self.asked[question[0]] += 1
        return super()._ask(*question)


@pytest.fixture
def counted() -> Iterator[Counted]:
    made = Counted()
    made.asked = Counter()
    yield made
    made.close()


def test_each_formula_is_read_once_and_few_pairs_are_compared(counted: Counted) -> None:
    roots = [f"\\sqrt{{{n}}}" for n in (2, 3, 5, 6, 7, 10, 11, 13)]
    assert not any(counted.equal(one, other) for one, other in combinations(roots, 2))
    assert counted.asked == {"marks": 8}
    assert counted.equal("\\sqrt{12}", "2\\sqrt{3}")
    assert not counted.equal("2", "3.5")
    assert counted.asked == {"marks": 10, "equal": 1}


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("2x+2y=4", "x+y=2", True),
        ("x=5", "5", True),
        ("x=5", "2x=10", True),
        ("y=2x+1", "2x+1", True),
        ("x+y=2", "x+y=3", False),
        ("y=2x+1", "y=2x+2", False),
        ("(x+1)^2", "x^2+2x+1", True),
        ("\\sin(x)^2+\\cos(x)^2", "1", True),
        ("x", "y", False),
        ("i^2", "-1", True),
        ("e^{i\\pi}", "-1", True),
        ("\\infty", "\\infty ", True),
        ("10^{400}", "10^{401}", False),
        ("10^{400}", "10^{200}\\cdot 10^{200}", True),
        (
            "\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix}",
            "\\begin{pmatrix}1&2\\\\3&\\frac{8}{2}\\end{pmatrix}",
            True,
        ),
        ("\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix}", "\\begin{pmatrix}1&2\\\\4&3\\end{pmatrix}", False),
    ],
)
def test_marks_separate_no_equal_formulas(counted: Counted, first: str, second: str, same: bool) -> None:
    assert counted.equal(first, second) is same
    assert counted.equal(second, first) is same


def test_memory_is_limited() -> None:
    """In less than the algebra itself takes, it does not load."""
    small = Mathematics(memory=48 << 20)
    with pytest.raises(EngineError, match="expected it to start"):
        small.equal("x+1", "1+x")
    small.close()


@pytest.mark.parametrize("sent", [signal.SIGSTOP, signal.SIGKILL])
def test_a_process_that_hangs_or_dies_is_replaced(mathematics: Mathematics, sent: signal.Signals) -> None:
    assert mathematics.equal("x+1", "1+x")
    before = mathematics.pid
    assert before is not None
    os.kill(before, sent)
    if sent is signal.SIGKILL:
        time.sleep(0.2)
        assert mathematics.equal("x+2", "2+x")
    else:
        with pytest.raises(UnjudgedError, match="time"):
            mathematics.equal("x+2", "2+x")
        assert mathematics.unjudged == {"time": 1}
    assert mathematics.equal("x+3", "3+x")
    assert mathematics.pid != before


def test_comparisons_from_many_threads(mathematics: Mathematics) -> None:
    wrong: list[int] = []

    def ask(k: int) -> None:
        if not mathematics.equal(f"x+{k}", f"{k}+x") or mathematics.equal(f"x+{k}", f"x+{k + 1}"):
            wrong.append(k)

    threads = [threading.Thread(target=ask, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize(
    "text",
    [
        r"\boxed{" * 5000,
        "(" * 100_000 + "1" + ")" * 100_000,
        r"\frac{" * 500 + "1" + "}{2}" * 500,
        "answer is" + "\n" * 1_000_000,
        "answer " * 200_000,
        "9" * 2_000_000,
        "x" * 3_000_000 + " 7 $" + "$ " * 100_000,
        r"\(" * 200_000 + "4",
        ",".join(["{1}"] * 600),
        r"\{" + ",".join(f"x^{{{k}}}" for k in range(150)) + r"\}",
        "1 " * 500_000,
        "\\" * 1000,
    ],
    ids=range(12),
)
def test_hostile_texts_end(text: str) -> None:
    begin = time.monotonic()
    assert not is_correct(text, r"\frac{1}{3}")
    assert not same_answer(text, "(1,2)")
    assert time.monotonic() - begin < 20


def test_nothing_is_evaluated(tmp_path: Path) -> None:
    target = tmp_path / "made"
    for text in (
        f"__import__('os').system('touch {target}')",
        rf"\text{{open('{target}','w')}}",
        f"\\sqrt{{open('{target}','w')}}+1",
    ):
        same_answer(text, "x+1")
        same_answer("x+1", text)
    assert not target.exists()


@pytest.mark.parametrize(
    ("event", "arguments"),
    [
        ("compile", (b"__import__('os')", "<string>")),
        ("compile", ("Integer (5 ).__class__", "<string>")),
        ("open", ("a", "w", 0)),
        ("open", ("a", None, os.O_WRONLY)),
        ("os.system", ("true",)),
        ("subprocess.Popen", ("true",)),
        ("socket.connect", ()),
    ],
)
def test_the_process_refuses_what_could_leave_it(event: str, arguments: tuple[object, ...]) -> None:
    with pytest.raises(PermissionError):
        math_worker.refuse(event, arguments)


def test_a_missing_algebra_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [])
    broken = Mathematics()
    with pytest.raises(EngineError, match="expected it to start; try: python -c 'import math_verify'"):
        broken.equal("x", "y")
    broken.close()
