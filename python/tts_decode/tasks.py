"""Problems with a verifier: a fixed set from reasoning-gym, or a JSONL file."""

from __future__ import annotations

import math
import os
import re
from codecs import BOM_UTF8
from collections.abc import Callable
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

from tts_kernels.checks import is_real

from .extras import require
from .records.strict_json import loads
from .select import extract_answer

_SEED = 20
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")

# Families that SmolLM2-135M-Instruct solves sometimes, with their data sets' options.
_DIGITS = {"min_digits": 1, "max_digits": 1}
_FAMILIES: dict[str, tuple[str, dict[str, int]]] = {
    "sum": ("chain_sum", {"min_terms": 2, "max_terms": 2, **_DIGITS}),
    "product": ("products", {"min_terms": 2, "max_terms": 2, **_DIGITS}),
    "gcd": ("gcd", {"min_numbers": 2, "max_numbers": 2, "min_value": 2, "max_value": 12}),
    "signed": ("basic_arithmetic", {"min_terms": 2, "max_terms": 2, **_DIGITS}),
}
_PER_FAMILY = 6
_HINT = "\nThink step by step, then give the final answer."


class TaskFileError(ValueError):
    """A task file cannot be used; the message names the file, the line and what is wrong."""


@dataclass(frozen=True)
class Task:
    """One problem.

    prompt: the user's message. answer: the expected answer, None if unknown.
    verify: maps a generated text to a score in [0, 1], 1 for correct; None if nothing can be checked.
    """

    name: str
    prompt: str
    answer: str | None = None
    verify: Callable[[str], float] | None = None


def default_tasks(limit: int | None = None, shots: int = 0) -> list[Task]:
    """The fixed set: small arithmetic from reasoning-gym under one seed, families taking turns.

    limit: how many; None for 24; there are 400. shots: further problems, the same for all and for
    every `limit`, that stand solved before each one; some 30 tokens each. A text is judged by reasoning-gym's
    own verifier, which is handed the last number of the text's final answer.

    Raises ValueError where the families have too few different problems, MissingExtraError without
    reasoning-gym.
    """
    require("reasoning_gym")
    import reasoning_gym

    count = _PER_FAMILY * len(_FAMILIES)  # the shots come right after these, the tasks beyond after the shots
    limit = count if limit is None else limit
    per_family = -(-(max(limit, count) + shots) // len(_FAMILIES))
    size = min(10 * per_family, 1000)  # by then the smallest family has shown all it has
    families = [
        _distinct(name, reasoning_gym.create_dataset(source, seed=seed, size=size, **options), per_family)
        for seed, (name, (source, options)) in enumerate(_FAMILIES.items(), start=_SEED)
    ]
    turns = [task for turn in zip(*families, strict=True) for task in turn]
    tasks, solved = turns[:count] + turns[count + shots :], turns[count : count + shots]
    examples = "".join(f"{task.prompt}\nThe answer is {task.answer}.\n\n" for task in solved)
    return [replace(task, prompt=examples + task.prompt) for task in tasks][:limit]


def _distinct(family: str, dataset: Any, count: int) -> list[Task]:
    """The first `count` problems of a data set that differ in their wording.

    Raises ValueError where it has fewer.
    """
    tasks: dict[str, Task] = {}
    for entry in dataset:
        question = entry["question"].strip()
        if question not in tasks:
            prompt = question if "Give only" in question else question + _HINT
            verify = _gym_verifier(dataset, entry)
            tasks[question] = Task(f"{family}/{len(tasks)}", prompt, entry["answer"], verify)
        if len(tasks) == count:
            return list(tasks.values())
    raise ValueError(
        f"limit, shots: got {count} problems of {family}, expected at most its {len(tasks)}; ask for fewer"
    )


def _gym_verifier(dataset: Any, entry: dict[str, Any]) -> Callable[[str], float]:
    def verify(text: str) -> float:
        return float(dataset.score_answer(final_number(text), entry))

    return verify


def final_number(text: str) -> str | None:
    """The last number of a text's final answer, or None: "The answer is 2 + 3 = 5." gives "5"."""
    numbers = _NUMBER.findall(extract_answer(text)) or _NUMBER.findall(text)
    return numbers[-1].replace(",", "") if numbers else None


def read_tasks(path: str | os.PathLike[str]) -> list[Task]:
    """Reads a JSONL file: one object a line with "prompt" and optionally "answer" and "name", all strings.

    A line ends with a newline and nothing else; the file is UTF-8, with a byte order mark or without. An
    answer or a name may also be a number. A text is correct when its final answer equals the expected one: as
    a number where that is one, else as text without regard to case and surrounding space.
    Raises TaskFileError, with the number of the line.
    """
    file = Path(path)
    try:
        lines = file.read_bytes().removeprefix(BOM_UTF8).split(b"\n")
    except OSError as cause:
        raise TaskFileError(f"task file {file}: cannot be read: {cause.strerror}") from cause
    tasks = [_parse(file, number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    if not tasks:
        raise TaskFileError(
            f'task file {file}: holds no task; expected one JSON object a line: {{"prompt": "..."}}'
        )
    return tasks


def _parse(file: Path, number: int, line: bytes) -> Task:
    def fail(what: str) -> TaskFileError:
        return TaskFileError(f"task file {file}, line {number}: {what}")

    try:
        fields = loads(line)
    except ValueError as cause:
        raise fail(str(cause)) from cause
    if not isinstance(fields, dict):
        raise fail(f'got {type(fields).__name__}, expected an object with "prompt"')
    unknown = sorted(set(fields) - {"name", "prompt", "answer"})
    if unknown:
        raise fail(f"unknown field {unknown[0]!r:.80}; expected name, prompt, answer")
    prompt, answer = fields.get("prompt"), fields.get("answer")
    if not isinstance(prompt, str) or not prompt.strip():
        raise fail(f'"prompt" must be a text that is not empty, got {prompt!r:.80}')
    if not (answer is None or isinstance(answer, str) or is_real(answer)):
        raise fail(f'"answer" must be a text or a number, got {answer!r:.80}')
    name = fields.get("name", number)
    if not (isinstance(name, str) or is_real(name)):
        raise fail(f'"name" must be a text or a number, got {name!r:.80}')
    if answer is None:
        return Task(str(name), prompt)
    # As a person writes it, without an exponent: so it is a number to `same_answer` too.
    expected = f"{Decimal(repr(answer)):f}" if isinstance(answer, float) else str(answer)
    return Task(str(name), prompt, expected, lambda text: float(same_answer(text, expected)))


def same_answer(text: str, expected: str) -> bool:
    """Whether the final answer of a text is the expected one."""
    wanted = _as_number(expected)
    if wanted is not None:
        got = _as_number(final_number(text) or "")
        return got is not None and math.isclose(got, wanted, rel_tol=1e-9, abs_tol=1e-12)
    return extract_answer(text).casefold().strip() == expected.casefold().strip()


def final_answer(text: str, expected: str | None) -> str:
    """What a text comes to, in the form in which it is compared with `expected`."""
    if expected is not None and _as_number(expected) is not None:
        return final_number(text) or ""
    return extract_answer(text)


def _as_number(text: str) -> float | None:
    """The number that a text is; None if it is none, or one beyond the range of float64."""
    number = float(text.replace(",", "")) if _NUMBER.fullmatch(text.strip()) else math.inf
    return number if math.isfinite(number) else None
