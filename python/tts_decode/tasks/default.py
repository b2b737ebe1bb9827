"""The fixed set of problems from reasoning-gym."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ..extras import require
from .answers import final_number
from .task import Task

_SEED = 20

# Families that SmolLM2-135M-Instruct sometimes solves, with their data sets' options.
_DIGITS = {"min_digits": 1, "max_digits": 1}
_FAMILIES: dict[str, tuple[str, dict[str, int]]] = {
    "sum": ("chain_sum", {"min_terms": 2, "max_terms": 2, **_DIGITS}),
    "product": ("products", {"min_terms": 2, "max_terms": 2, **_DIGITS}),
    "gcd": ("gcd", {"min_numbers": 2, "max_numbers": 2, "min_value": 2, "max_value": 12}),
    "signed": ("basic_arithmetic", {"min_terms": 2, "max_terms": 2, **_DIGITS}),
}
_PER_FAMILY = 6
_HINT = "\nThink step by step, then give the final answer."


def default_tasks(limit: int | None = None, shots: int = 0) -> list[Task]:
    """Returns the fixed set: small arithmetic from reasoning-gym under one seed, families taking turns.

    Args:
        limit: number of problems; None for 24; at most 400.
        shots: number of solved problems shown before each one, the same for all and for every `limit`; about
            30 tokens each.

    reasoning-gym's own verifier judges the last number of a text's final answer.

    Raises ValueError if the families have too few different problems, MissingExtraError without
    reasoning-gym.
    """
    require("reasoning_gym")
    import reasoning_gym

    count = _PER_FAMILY * len(_FAMILIES)  # the shots come right after these, further tasks after the shots
    limit = count if limit is None else limit
    per_family = -(-(max(limit, count) + shots) // len(_FAMILIES))
    size = min(10 * per_family, 1000)  # the smallest family has no more distinct problems by then
    families = [
        _distinct(name, reasoning_gym.create_dataset(source, seed=seed, size=size, **options), per_family)
        for seed, (name, (source, options)) in enumerate(_FAMILIES.items(), start=_SEED)
    ]
    turns = [task for turn in zip(*families, strict=True) for task in turn]
    tasks, solved = turns[:count] + turns[count + shots :], turns[count : count + shots]
    examples = "".join(f"{task.prompt}\nThe answer is {task.answer}.\n\n" for task in solved)
    return [replace(task, prompt=examples + task.prompt) for task in tasks][:limit]


def _distinct(family: str, dataset: Any, count: int) -> list[Task]:
    """Returns the first `count` problems of a data set with different wording.

    Raises ValueError if it has fewer.
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
