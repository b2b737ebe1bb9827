"""Questions with four choices, one of them right."""

from __future__ import annotations

import random
import re
from typing import Any

from ..select import extract_answer
from .rows import Row
from .task import Task, TaskFileError

_LETTERS = "ABCD"
_STATED = re.compile(r"(?:\\text\{|\\mathrm\{|\*|\(|\s|option|choice)*([A-D])(?![A-Za-z0-9'])", re.IGNORECASE)
_SECOND = re.compile(r"[\s)}*]*(?:or|and|,|/|&)[\s({*]*(?:and|or)?[\s({*]*[A-D](?![A-Za-z0-9'])")
_HINT = "\n\n{choices}\n\nThink step by step, then end with: The answer is (X), where X is A, B, C or D."


def choice_task(row: Row, parts: dict[str, Any], name: str, seed: int) -> Task:
    """Makes a task from the parts `prompt`, `answer` and `wrong1` to `wrong3`.

    The choices are shuffled by the seed and the row, so a row's order does not depend on earlier rows.
    """
    for part in ("prompt", "answer", "wrong1", "wrong2", "wrong3"):
        if not isinstance(parts.get(part), str) or not parts[part].strip():
            raise TaskFileError(
                f'{row.place}: "{part}" must be a text that is not empty, got {parts.get(part)!r:.80}'
            )
    told = {part: " ".join(parts[part].split()) for part in ("answer", "wrong1", "wrong2", "wrong3")}
    for part in ("wrong1", "wrong2", "wrong3"):
        if told[part] == told["answer"]:
            raise TaskFileError(
                f'{row.place}: "{part}" of {name} is the right answer, {told[part]!r:.80}; expected others'
            )
    order = random.Random(f"{seed} {row.number}").sample(range(4), 4)
    texts = [parts["answer"], parts["wrong1"], parts["wrong2"], parts["wrong3"]]
    choices = "\n".join(f"({letter}) {texts[i].strip()}" for letter, i in zip(_LETTERS, order, strict=True))
    right = _LETTERS[order.index(0)]
    prompt = parts["prompt"].strip() + _HINT.format(choices=choices)
    return Task(name, prompt, right, lambda text: float(chosen_letter(text) == right))


def chosen_letter(text: str) -> str | None:
    r"""Returns the choice that ends a text: `The answer is (C)`, `\boxed{C}`, `C`; None for more than one."""
    answer = extract_answer(text)[:100]
    found = _STATED.match(answer)
    return None if found is None or _SECOND.match(answer, found.end()) else found[1].upper()
