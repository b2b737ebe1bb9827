"""Tasks of several stages: which model, strategy and size serve each stage, and what a plan achieves."""

from __future__ import annotations

import math
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tts_kernels.checks import number

from ..core.budget import Budget
from ..core.checks import at_least
from ..core.running import gather
from ..rewards.scorer import Scorer
from .policy import Setting
from .policy_fit import Question

if TYPE_CHECKING:
    from ..core.interfaces import Decoder
    from ..core.params import SamplingParams
    from ..core.prompts import Prompt


@dataclass(frozen=True)
class Choice:
    """One way to serve a stage: a model by its name, a setting, and the setting's size."""

    model: str
    setting: Setting
    n: int

    def __str__(self) -> str:
        return f"{self.model}, {self.setting} at {self.n}"


@dataclass(frozen=True)
class Stage:
    """A subtask.

    Attributes:
        name: a Python name; later stages' prompts have a field of that name.
        prompt: template with the fields {question} and those of earlier stages, which their answers fill.
        choices: ways to serve it, cheapest first.
    """

    name: str
    prompt: str
    choices: Sequence[Choice]


Plan = tuple[int, ...]
"""The index of a choice for each stage."""


@dataclass(frozen=True)
class Trial:
    """The results of a plan, averaged over the questions.

    Attributes:
        score: of the last stage's answers, by the questions' verifiers.
        tokens: sampled, by stage.
        eflops: of all forwards, by stage (`Budget.cost_used`); 0 on other engines.
        cost: the tokens of each stage at the price of its model, summed.
    """

    plan: Plan
    score: float
    tokens: tuple[float, ...]
    eflops: tuple[float, ...]
    cost: float


def check_stages(stages: Sequence[Stage]) -> None:
    """Raises ValueError for a stage without choices, an invalid or duplicate name, or an unknown field."""
    if not stages:
        raise ValueError("stages: got none, expected one or more")
    known = ["question"]
    for place, stage in enumerate(stages):
        if not stage.choices:
            raise ValueError(f"stages[{place}].choices: got none, expected one or more")
        for choice in stage.choices:
            at_least(1, n=choice.n)
            choice.setting.check_size(choice.n)
        for _, name, _, _ in string.Formatter().parse(stage.prompt):
            if name is not None and name not in known:
                fields = ", ".join(f"{{{field}}}" for field in known)
                raise ValueError(f"stages[{place}].prompt: got the field {{{name}}}, expected {fields}")
        if not stage.name.isidentifier() or stage.name in known:
            raise ValueError(f"stages[{place}].name: got {stage.name!r}, expected a Python name of its own")
        known.append(stage.name)


async def measure_plan(
    decoders: Mapping[str, Decoder],
    stages: Sequence[Stage],
    plan: Plan,
    questions: Sequence[Question],
    *,
    prices: Mapping[str, float] | None = None,
    scorer: Scorer | None = None,
    sampling: SamplingParams | None = None,
    make_prompt: Callable[[str], Prompt] = str,
) -> Trial:
    """Answers each question stage by stage, all questions concurrently.

    Args:
        decoders: by the names that choices give models.
        questions: with verifiers.
        prices: of a sampled token, by model; default: 1 each.
        scorer: of the searches of all stages.
        sampling, make_prompt: as in `measure_settings`.

    Raises:
        ValueError: stages, plan, names or questions do not fit each other; nothing was sampled.
    """
    check_stages(stages)
    check_plan(stages, plan)
    choices = [stage.choices[index] for stage, index in zip(stages, plan, strict=True)]
    for choice in choices:
        if choice.model not in decoders:
            raise ValueError(f"decoders: got {sorted(decoders)}, expected one for the model {choice.model!r}")
    price = [1.0 if prices is None else number("prices", prices[c.model], low=0) for c in choices]
    if not questions or any(question.verify is None for question in questions):
        raise ValueError("questions: got none, or one without a verifier, expected answers to compare with")
    known = {"scorer": scorer}

    async def served(stage: Stage, choice: Choice, fields: dict[str, str]) -> tuple[str, int, float]:
        budget = Budget()
        prompt = make_prompt(stage.prompt.format(**fields))
        root = await decoders[choice.model].root(prompt, sampling, budget)
        try:
            result = await choice.setting.strategy(root, **choice.setting.arguments(choice.n, known))
        finally:
            root.release()
        return result.best.text, result.stats.generated_tokens, budget.cost_used

    async def answered(question: Question) -> tuple[float, list[int], list[float]]:
        fields, tokens, eflops = {"question": question.prompt}, list[int](), list[float]()
        text = ""
        for stage, choice in zip(stages, choices, strict=True):
            text, count, cost = await served(stage, choice, fields)
            fields[stage.name] = text
            tokens.append(count)
            eflops.append(cost)
        assert question.verify is not None  # checked before
        return question.verify(text), tokens, eflops

    found = await gather(answered(question) for question in questions)
    tokens = tuple(_mean([row[1][i] for row in found]) for i in range(len(stages)))
    return Trial(
        plan,
        _mean([row[0] for row in found]),
        tokens,
        tuple(_mean([row[2][i] for row in found]) for i in range(len(stages))),
        math.fsum(p * count for p, count in zip(price, tokens, strict=True)),
    )


def check_plan(stages: Sequence[Stage], plan: Any) -> None:
    """Raises ValueError unless the plan has the index of a choice for each stage."""
    fits = isinstance(plan, tuple) and len(plan) == len(stages)
    if not fits or not all(index in range(len(s.choices)) for s, index in zip(stages, plan, strict=True)):
        counts = [len(stage.choices) for stage in stages]
        raise ValueError(f"plan: got {plan!r}, expected for each stage an index below {counts}")


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
