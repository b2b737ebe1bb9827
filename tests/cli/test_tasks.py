"""The default problems are fixed and judged by reasoning-gym; task files fail with the line's number."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tts_decode.tasks import TaskFileError, default_tasks, final_answer, final_number, read_tasks


def test_default_tasks_are_fixed() -> None:
    first, second = default_tasks(), default_tasks()
    assert [(task.name, task.prompt, task.answer) for task in first] == [
        (task.name, task.prompt, task.answer) for task in second
    ]
    assert len({task.prompt for task in first}) == len(first)
    assert [task.name for task in default_tasks(3)] == [task.name for task in first[:3]]


@pytest.mark.parametrize("shots", [0, 5])
def test_more_default_tasks_leave_the_first_ones_and_the_shots_as_they_are(shots: int) -> None:
    few, many = default_tasks(shots=shots), default_tasks(100, shots)
    assert [(task.name, task.prompt) for task in many[: len(few)]] == [
        (task.name, task.prompt) for task in few
    ]
    assert len({task.prompt for task in many}) == len(many) == 100
    head, _, question = many[99].prompt.rpartition("\n\n") if shots else ("", "", "")
    assert head.count("The answer is") == shots
    assert not any(question and question in task.prompt for task in many[:99])


def test_too_many_default_tasks() -> None:
    assert len(default_tasks(380)) == 380
    with pytest.raises(ValueError, match="got 125 problems of product, expected at most its 100"):
        default_tasks(500)


def test_default_tasks_are_judged_by_reasoning_gym() -> None:
    for task in default_tasks():
        assert task.verify is not None
        assert task.answer is not None
        assert task.verify(f"Adding them up.\nThe final answer is {task.answer}.") == 1.0
        assert task.verify(f"1 + 1 = 2, so it is 12{task.answer}7") < 0.99
        assert task.verify("I do not know.") < 0.99
        assert task.verify("") < 0.99


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("The answer is 2 + 3 = 5.", "5"),
        ("12 and 1,234.5", "1234.5"),
        ("Answer: -7\n", "-7"),
        ("nothing", None),
        ("The answer is unclear, 7", "7"),
    ],
)
def test_final_number(text: str, number: str | None) -> None:
    assert final_number(text) == number


def test_final_answer() -> None:
    assert final_answer("so it is 12 apples", "12") == "12"
    assert final_answer("The answer is blue.", "Blue") == "blue"
    assert final_answer("no numbers", "3") == ""


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_read_tasks(tmp_path: Path) -> None:
    file = write(
        tmp_path / "tasks.jsonl",
        '{"prompt": "What is 1 + 1?", "answer": 2}',
        "",
        '{"name": "colour", "prompt": "The sky?", "answer": "Blue"}',
        '{"prompt": "Talk."}',
    )
    two, colour, talk = read_tasks(file)
    assert (two.name, two.answer, colour.name, talk.name) == ("1", "2", "colour", "4")
    assert two.verify is not None
    assert colour.verify is not None
    assert [two.verify(text) for text in ("It is 2.0", "so 1 + 1 = 2.", "3", "two", "too")] == [
        *(1.0, 1.0, 0.0, 1.0, 0.0)
    ]
    assert [colour.verify(text) for text in ("The answer is blue.", "red")] == [1.0, 0.0]
    assert talk.verify is None


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_only_newlines_end_a_line(tmp_path: Path, end: str, mark: str) -> None:
    """Not what else Unicode, or str.splitlines, takes for one."""
    separators = "| \u2028 \u2029 \x85 \x0b"
    prompts = ["a\u2028b", "a\x85b", "a\u2029b", "\x7f\ufeff", "last"]
    lines = [json.dumps({"prompt": prompt, "answer": "x"}, ensure_ascii=False) for prompt in prompts]
    lines.insert(3, json.dumps({"prompt": separators}))
    (tmp_path / "tasks.jsonl").write_bytes((mark + end.join([*lines, ""])).encode())
    assert [task.prompt for task in read_tasks(tmp_path / "tasks.jsonl")] == [
        *prompts[:3],
        separators,
        *prompts[3:],
    ]


@pytest.mark.parametrize(
    ("answer", "right", "wrong"),
    [
        ("1e22", "It is 10000000000000000000000, 1e+22", "1e+21"),
        ("1e-7", "so 0.0000001", "1e-06"),
        ("2.50", "2.5", "25"),
        ("1" + "0" * 300, "1" + "0" * 300, "1" + "0" * 301),
        ('"1' + "0" * 400 + '"', "1" + "0" * 400, "1" + "0" * 401),
    ],
)
def test_answers_of_any_size_are_compared_as_numbers(
    tmp_path: Path, answer: str, right: str, wrong: str
) -> None:
    (task,) = read_tasks(write(tmp_path / "tasks.jsonl", f'{{"prompt": "a", "answer": {answer}}}'))
    assert task.verify is not None
    assert (task.verify(right), task.verify(wrong)) == (1.0, 0.0)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: is not JSON .* at column 2"),
        ("[1]", "line 2: got list, expected an object"),
        ('{"answer": "1"}', 'line 2: "prompt" must be a text'),
        ('{"prompt": "  "}', 'line 2: "prompt" must be a text that is not empty'),
        ('{"prompt": "a", "answer": [1]}', r'line 2: "answer" must be a text or a number, got \[1\]'),
        ('{"prompt": "a", "answer": true}', 'line 2: "answer" must be a text or a number, got True'),
        ('{"prompt": "a", "anwser": "1"}', "line 2: unknown field 'anwser'"),
        ('{"prompt": "a", "answer": NaN}', "line 2: has NaN, which is no number of JSON"),
        ('{"prompt": "a", "answer": -Infinity}', "line 2: has -Infinity"),
        ('{"prompt": "a", "answer": 1e400}', "line 2: has a number out of range, 1e400"),
        (
            '{"prompt": "a", "answer": ' + "1" * 5000 + "}",
            "line 2: has a number out of range, of 5000 digits",
        ),
        ('{"prompt": "a", "prompt": "b"}', "line 2: has the key 'prompt' twice"),
        ('{"prompt": "a", "answer": ' + "[" * 200_000, "line 2: is nested too deeply"),
        ('{"prompt": "a\\ud800"}', "line 2: holds half of a surrogate pair"),
        ('{"prompt": "a", "name": null}', 'line 2: "name" must be a text or a number, got None'),
        ('{"prompt": "a", "name": ["b"]}', r'line 2: "name" must be a text or a number, got \['),
    ],
)
def test_task_file_errors_name_the_line(tmp_path: Path, line: str, message: str) -> None:
    file = write(tmp_path / "tasks.jsonl", '{"prompt": "fine"}', line)
    with pytest.raises(TaskFileError, match=message):
        read_tasks(file)


def test_task_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(TaskFileError, match="No such file"):
        read_tasks(tmp_path / "none.jsonl")
    with pytest.raises(TaskFileError, match="Is a directory"):
        read_tasks(tmp_path)
    with pytest.raises(TaskFileError, match="holds no task"):
        read_tasks(write(tmp_path / "empty.jsonl", "", "  "))
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TaskFileError, match="line 1: is not UTF-8"):
        read_tasks(tmp_path / "binary")
