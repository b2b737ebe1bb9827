"""The field names of published data sets, as data, and how a row of each becomes a task."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

from tts_kernels.checks import is_real

from ..grading import is_correct
from .choices import choice_task
from .programs import program_task
from .rows import Row
from .task import Task, TaskFileError

_MATH_HINT = "\nPlease reason step by step, and put your final answer within \\boxed{}."


@dataclass(frozen=True)
class Options:
    """Options for making tasks. seed: of shuffled choices. unsafe_tools: run programs without the sandbox."""

    seed: int = 0
    unsafe_tools: bool = False


@dataclass(frozen=True)
class Format:
    """A data set's format.

    fields: possible names of each part of a task; the first that a row has is used. strict: other fields are
    refused. config, split: which part of the hub's set is meant.
    """

    name: str
    fields: Mapping[str, tuple[str, ...]]
    make: Callable[[Row, dict[str, Any], Options], Task]
    config: str | None = None
    split: str = "test"
    strict: bool = False

    def renamed(self, fields: Mapping[str, str]) -> Format:
        """Returns the format with the user's names for some parts."""
        named = {part: (name,) for part, name in fields.items()}
        return replace(self, fields={**self.fields, **named}, strict=False)

    def task(self, row: Row, options: Options) -> Task:
        """Makes a task of a row. Raises TaskFileError."""
        if self.strict:
            known = [name for names in self.fields.values() for name in names]
            unknown = sorted(set(row.fields) - set(known))
            if unknown:
                raise TaskFileError(
                    f"{row.place}: unknown field {unknown[0]!r:.80}; expected {', '.join(known)}"
                )
        parts = {
            part: next((row.fields[name] for name in names if name in row.fields), None)
            for part, names in self.fields.items()
        }
        parts = {part: value for part, value in parts.items() if value is not None}
        return self.make(row, parts, options)


def _answered(row: Row, parts: dict[str, Any], options: Options) -> Task:
    prompt, answer = parts.get("prompt"), parts.get("answer")
    if not isinstance(prompt, str) or not prompt.strip():
        raise TaskFileError(f'{row.place}: "prompt" must be a text that is not empty, got {prompt!r:.80}')
    if not (answer is None or isinstance(answer, (str, Decimal)) or is_real(answer)):
        raise TaskFileError(f'{row.place}: "answer" must be a text or a number, got {answer!r:.80}')
    if isinstance(answer, (float, Decimal)) and not Decimal(answer).is_finite():
        raise TaskFileError(f'{row.place}: "answer" must be finite, got {answer!r:.80}; null says unknown')
    if isinstance(answer, str) and not answer.strip():
        raise TaskFileError(f'{row.place}: "answer" is empty, which nothing equals; leave it out if unknown')
    if answer is None:
        return Task(_name(row, parts), prompt)
    # As people write it, without an exponent.
    expected = f"{Decimal(str(answer)):f}" if isinstance(answer, (float, Decimal)) else str(answer)
    return Task(_name(row, parts), prompt, expected, lambda text: float(is_correct(text, expected)))


def _mathematics(row: Row, parts: dict[str, Any], options: Options) -> Task:
    task = _answered(row, parts, options)
    if task.answer is None:
        raise TaskFileError(f"{row.place}: has no answer")
    return replace(task, prompt=task.prompt + _MATH_HINT)


def _gsm8k(row: Row, parts: dict[str, Any], options: Options) -> Task:
    """Makes a task of a row whose solution's last line is like `#### 72`."""
    solution = parts.get("answer")
    _, marked, answer = solution.rpartition("####") if isinstance(solution, str) else ("", "", "")
    if not marked:
        raise TaskFileError(
            f'{row.place}: "answer" must end with "#### NUMBER", got {parts.get("answer")!r:.80}'
        )
    return _mathematics(row, parts | {"answer": answer.strip().replace(",", "")}, options)


def _gpqa(row: Row, parts: dict[str, Any], options: Options) -> Task:
    return choice_task(row, parts, _name(row, parts), options.seed)


def _humaneval(row: Row, parts: dict[str, Any], options: Options) -> Task:
    return program_task(row, parts, _name(row, parts), unsafe=options.unsafe_tools)


def _name(row: Row, parts: dict[str, Any]) -> str:
    name = row.number if "name" not in row.fields and "name" not in parts else parts.get("name")
    if not (isinstance(name, str) or is_real(name)):
        raise TaskFileError(f'{row.place}: "name" must be a text or a number, got {name!r:.80}')
    return str(name)


_PROBLEM = ("problem", "Problem", "question", "Question")
_SOLUTION = {"answer": ("answer", "Answer")}
FORMATS: dict[str, Format] = {
    made.name: made
    for made in (
        Format(
            "plain", {"name": ("name",), "prompt": ("prompt",), "answer": ("answer",)}, _answered, strict=True
        ),
        Format("math500", {"name": ("unique_id",), "prompt": _PROBLEM, **_SOLUTION}, _mathematics),
        Format("gsm8k", {"prompt": _PROBLEM, **_SOLUTION}, _gsm8k, config="main"),
        Format("aime", {"name": ("id", "ID"), "prompt": _PROBLEM, **_SOLUTION}, _mathematics, split="train"),
        Format(
            "gpqa",
            {
                "name": ("Record ID",),
                "prompt": ("Question",),
                "answer": ("Correct Answer",),
                **{f"wrong{i}": (f"Incorrect Answer {i}",) for i in (1, 2, 3)},
            },
            _gpqa,
            config="gpqa_diamond",
            split="train",
        ),
        Format(
            "humaneval",
            {
                "name": ("task_id",),
                "prompt": ("prompt",),
                "test": ("test",),
                "entry_point": ("entry_point",),
            },
            _humaneval,
        ),
    )
}
"""The formats, by name."""

# Data sets on the hub (lower case) and their formats.
HUB_FORMATS = {
    "huggingfaceh4/math-500": "math500",
    "openai/gsm8k": "gsm8k",
    "huggingfaceh4/aime_2024": "aime",
    "ai-mo/aimo-validation-aime": "aime",
    "maxwell-jia/aime_2024": "aime",
    "idavidrein/gpqa": "gpqa",
    "openai/openai_humaneval": "humaneval",
}
