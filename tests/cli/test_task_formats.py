"""Data sets in the fields that they are published with. The rows are our own."""

from __future__ import annotations

import csv
import json
import sys
from decimal import Decimal
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from tts_decode.errors import MissingExtraError, SandboxError
from tts_decode.sandbox import check_sandbox
from tts_decode.tasks import TaskFileError, read_tasks, reading
from tts_decode.tasks.choices import chosen_letter
from tts_decode.tasks.programs import program

MATH = {"problem": "Half of 3?", "solution": "...", "answer": r"\frac{3}{2}", "unique_id": "test/1.json"}
GSM = {
    "question": "Ann has 40 and gets 32. How many?",
    "answer": "40 + 32 = <<40+32=72>>72\n#### 1,072",
}
AIME = {"id": 60, "problem": "Which number?", "answer": "025", "year": "2024"}
GPQA = {
    "Record ID": "rec1",
    "Question": "Which is even?",
    "Correct Answer": "two",
    "Incorrect Answer 1": "one",
    "Incorrect Answer 2": "three",
    "Incorrect Answer 3": "five",
}
EVAL = {
    "task_id": "Own/0",
    "prompt": 'from typing import List\n\n\ndef total(xs: List[int]) -> int:\n    """Sum of xs."""\n',
    "test": "def check(candidate):\n    assert candidate([1, 2]) == 3\n    assert candidate([]) == 0\n",
    "entry_point": "total",
    "canonical_solution": "    return sum(xs)\n",
}


def lines(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def scores(task: Any, *texts: str) -> list[float]:
    return [task.verify(text) for text in texts]


def test_math500(tmp_path: Path) -> None:
    (task,) = read_tasks(lines(tmp_path / "a.jsonl", MATH), format="math500")
    assert (task.name, task.answer) == ("test/1.json", r"\frac{3}{2}")
    assert task.prompt.startswith("Half of 3?\n")
    assert scores(task, r"\boxed{\dfrac32}", r"\boxed{1.5}", r"\boxed{\frac{2}{3}}", "3/2") == [1, 1, 0, 1]


def test_gsm8k(tmp_path: Path) -> None:
    (task,) = read_tasks(lines(tmp_path / "a.jsonl", GSM), format="gsm8k")
    assert (task.name, task.answer) == ("1", "1072")
    assert scores(task, "#### 1072", "It is $1,072.", "#### 72", r"\boxed{\sqrt{1072}}") == [1, 1, 0, 0]
    with pytest.raises(TaskFileError, match='line 1: "answer" must end with "#### NUMBER", got \'72\''):
        read_tasks(lines(tmp_path / "b.jsonl", GSM | {"answer": "72"}), format="gsm8k")


def test_aime(tmp_path: Path) -> None:
    (task,) = read_tasks(lines(tmp_path / "a.jsonl", AIME), format="aime")
    assert task.name == "60"
    assert scores(task, r"\boxed{025}", r"\boxed{25}", r"\boxed{52}") == [1, 1, 0]


def test_gpqa_shuffles_by_the_seed(tmp_path: Path) -> None:
    file = lines(tmp_path / "a.jsonl", GPQA, GPQA)
    tasks = {seed: read_tasks(file, format="gpqa", seed=seed) for seed in range(8)}
    assert [t.prompt for t in tasks[3]] == [t.prompt for t in read_tasks(file, format="gpqa", seed=3)]
    assert {task.answer for made in tasks.values() for task in made} == set("ABCD")
    for task in (task for made in tasks.values() for task in made):
        assert f"({task.answer}) two" in task.prompt
        others = [letter for letter in "ABCD" if letter != task.answer]
        assert scores(task, f"The answer is ({task.answer}).", rf"\boxed{{{task.answer}}}") == [1, 1]
        assert scores(task, *(f"The answer is ({letter})" for letter in others), "Two.") == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("The answer is (C)", "C"),
        ("The correct answer is **B**.", "B"),
        (r"\boxed{\text{(D)}}", "D"),
        ("Answer: option a", "A"),
        ("The answer is a large number", "A"),
        ("The answer is Aluminium", None),
        ("", None),
    ],
)
def test_chosen_letters(text: str, letter: str | None) -> None:
    assert chosen_letter(text) == letter


def test_humaneval(tmp_path: Path) -> None:
    try:
        check_sandbox()
        unsafe = False
    except SandboxError:
        unsafe = True
    (task,) = read_tasks(lines(tmp_path / "a.jsonl", EVAL), format="humaneval", unsafe_tools=unsafe)
    assert (task.name, task.waits) == ("Own/0", True)
    right = "Here:\n```python\ndef total(xs: List[int]) -> int:\n    return sum(xs)\n```\nDone."
    assert scores(task, right, "    return sum(xs)\n", "```\n    return sum(xs)\n```") == [1, 1, 1]
    wrong = (
        "return 3",
        "    return 3\n",
        "    import os; os._exit(0)\n",
        "    raise SystemExit(0)\n",
        "",
        "no",
    )
    assert scores(task, *wrong) == [0] * len(wrong)
    assert scores(task, "```python\nimport sys\nsys.exit(0)\ndef total(xs): return 0\n```") == [0]


def test_a_whole_function_keeps_what_stands_before_it_in_the_prompt() -> None:
    code = program(EVAL["prompt"], "```python\ndef total(xs):\n    return 1\n```", "total")
    assert code == "from typing import List\n\n\ndef total(xs):\n    return 1\n"


def test_programs_without_a_sandbox_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise SandboxError("sandbox: no")

    monkeypatch.setattr("tts_decode.tasks.programs.check_sandbox", refuse)
    file = lines(tmp_path / "a.jsonl", EVAL)
    with pytest.raises(SandboxError):
        read_tasks(file, format="humaneval")
    assert len(read_tasks(file, format="humaneval", unsafe_tools=True)) == 1


def test_a_wrong_choice_that_is_the_right_one_is_refused_by_its_record(tmp_path: Path) -> None:
    """Else a right answer counts as wrong where the other letter is taken."""
    file = lines(tmp_path / "a.jsonl", GPQA, GPQA | {"Record ID": "rec2", "Incorrect Answer 2": " two\n"})
    with pytest.raises(TaskFileError, match="line 2: \"wrong2\" of rec2 is the right answer, 'two'"):
        read_tasks(file, format="gpqa")


def test_files_of_other_kinds(tmp_path: Path) -> None:
    rows = [{"prompt": "1 + 1?", "answer": "2"}, {"prompt": "a,\nb", "answer": "x"}]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    with (tmp_path / "a.csv").open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, ["prompt", "answer"])
        writer.writeheader()
        writer.writerows(rows)
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(sys.modules["pyarrow"].Table.from_pylist(rows), tmp_path / "a.parquet")
    for suffix in ("json", "csv", "parquet"):
        tasks = read_tasks(tmp_path / f"a.{suffix}")
        assert [(t.name, t.prompt, t.answer) for t in tasks] == [("1", "1 + 1?", "2"), ("2", "a,\nb", "x")]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", b"{}", "got dict, expected a list of objects"),
        ("a.json", b"[1]", "entry 1: got int, expected an object"),
        ("a.csv", b"prompt,answer\nx\n", "row 1: got another number of fields"),
        ("a.csv", b"prompt\n\xff\n", "is not UTF-8 text"),
        ("a.parquet", b"nothing", "is not Parquet"),
        ("a.jsonl", b'{"problem": "x"}', "line 1: unknown field 'problem'"),
    ],
)
def test_files_that_are_wrong(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TaskFileError, match=message):
        read_tasks(tmp_path / name)


def test_fields_of_another_name(tmp_path: Path) -> None:
    file = lines(tmp_path / "a.jsonl", {"q": "1 + 1?", "a": 2, "level": 3})
    (task,) = read_tasks(file, fields={"prompt": "q", "answer": "a"})
    assert (task.prompt, task.answer) == ("1 + 1?", "2")
    with pytest.raises(ValueError, match="field: got 'question', expected one of name, prompt, answer"):
        read_tasks(file, fields={"question": "q"})
    with pytest.raises(ValueError, match="format: got 'x', expected one of plain, math500"):
        read_tasks(file, format="x")


def test_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []

    def load_dataset(name: str, config: str | None, *, split: str) -> list[dict[str, Any]]:
        asked.append((name, config, split))
        if name == "own/none":
            raise FileNotFoundError("no such set\nmore")
        return [GSM]

    stub = ModuleType("datasets")
    stub.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", stub)
    assert read_tasks("openai/gsm8k")[0].answer == "1072"
    read_tasks("own/set:socratic", format="gsm8k", split="train")
    assert asked == [("openai/gsm8k", "main", "test"), ("own/set", "socratic", "train")]
    with pytest.raises(TaskFileError, match="data set own/none: got FileNotFoundError: no such set,"):
        read_tasks("own/none")


def test_mathematics_needs_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "installed", lambda module: False)

    def missing(module: str) -> None:
        raise MissingExtraError(module)

    monkeypatch.setattr(reading, "require", missing)
    with pytest.raises(MissingExtraError, match="math_verify"):
        read_tasks(lines(tmp_path / "a.jsonl", MATH), format="math500")
    assert read_tasks(lines(tmp_path / "a.jsonl", GSM), format="gsm8k")


@pytest.mark.parametrize(
    ("row", "format", "reason"),
    [
        ({"prompt": "a", "answer": ""}, "plain", "leave it out"),
        ({"prompt": "a", "answer": " \n"}, "plain", "leave it out"),
        (MATH | {"answer": ""}, "math500", "leave it out"),
        (GSM | {"answer": "no sum\n####"}, "gsm8k", "leave it out"),
        (GSM | {"answer": ["#### 5"]}, "gsm8k", "#### NUMBER"),
    ],
)
def test_an_answer_that_nothing_equals_is_refused(
    tmp_path: Path, row: dict[str, Any], format: str, reason: str
) -> None:
    with pytest.raises(TaskFileError, match=reason):
        read_tasks(lines(tmp_path / "a.jsonl", row), format=format)


def test_an_empty_cell_of_csv_is_an_unknown_answer(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("prompt,answer\na,\nb,3\n")
    assert [task.answer for task in read_tasks(tmp_path / "a.csv")] == [None, "3"]


def test_a_column_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("prompt,prompt\na,b\n")
    with pytest.raises(TaskFileError, match="'prompt' twice"):
        read_tasks(tmp_path / "a.csv")


def test_a_named_field_that_no_row_has_is_refused(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", {"q": "a", "a": "1"})
    with pytest.raises(ValueError, match="answer=solution, which no row has; they have q, a"):
        read_tasks(path, fields={"prompt": "q", "answer": "solution"})


def test_numbers_of_parquet_are_read_as_they_were_written(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    for values, expected in (
        (pyarrow.array([0.1, None], pyarrow.float32()), ["0.1", None]),
        ([Decimal("3.50"), None], ["3.50", None]),
    ):
        parquet.write_table(pyarrow.table({"prompt": ["a", "b"], "answer": values}), tmp_path / "a.parquet")
        assert [task.answer for task in read_tasks(tmp_path / "a.parquet")] == expected
    parquet.write_table(pyarrow.table({"prompt": ["a"], "answer": [float("nan")]}), tmp_path / "a.parquet")
    with pytest.raises(TaskFileError, match="finite"):
        read_tasks(tmp_path / "a.parquet")


@pytest.mark.parametrize("text", ["The answer is A or C.", "The answer is (A) and (C).", r"\boxed{A, C}"])
def test_two_choices_are_none(text: str) -> None:
    assert chosen_letter(text) is None
