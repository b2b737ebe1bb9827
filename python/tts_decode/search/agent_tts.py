"""AgentTTS: an agent searches models and budgets for a task's stages, based on the results of its trials."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tts_kernels.checks import number

from ..core.checks import at_least
from .plans import Plan, Stage, Trial, check_plan, check_stages

if TYPE_CHECKING:
    from ..core.interfaces import Decoder
    from ..core.params import SamplingParams


@dataclass(frozen=True)
class Archive:
    """What an agent is shown: the stages, the trials so far in order, and the cost limit of a plan."""

    stages: Sequence[Stage]
    trials: Sequence[Trial]
    max_cost: float | None = None

    @property
    def best(self) -> Trial | None:
        """Returns the trial with the best score within the cost limit; None if there is none.

        Among equals it is the cheapest, then the first.
        """
        limit = math.inf if self.max_cost is None else self.max_cost
        within = [trial for trial in self.trials if trial.cost <= limit]
        return min(within, key=lambda trial: (-trial.score, trial.cost), default=None)

    def report(self) -> str:
        """Returns a Markdown table of the trials: plan, score, tokens by stage, cost; the best in bold."""
        lines = [
            "| " + " | ".join([stage.name for stage in self.stages] + ["score", "tokens", "cost"]) + " |"
        ]
        lines.append("|---" * (len(self.stages) + 3) + "|")
        for trial in self.trials:
            chosen = [str(s.choices[i]) for s, i in zip(self.stages, trial.plan, strict=True)]
            mark = "**" if trial is self.best else ""
            tokens = " + ".join(f"{count:.0f}" for count in trial.tokens)
            row = [*chosen, f"{mark}{trial.score:.1%}{mark}", tokens, f"{trial.cost:.0f}"]
            lines.append("| " + " | ".join(row) + " |")
        return "\n".join(lines)


Agent = Callable[[Archive], "Sequence[Plan] | Awaitable[Sequence[Plan]]"]
"""A function or coroutine function that returns the plans to try next, best guess first; none: it is done."""


async def search_plans(
    stages: Sequence[Stage],
    measure: Callable[[Plan], Awaitable[Trial]],
    *,
    agent: Agent | None = None,
    max_trials: int = 20,
    max_cost: float | None = None,
) -> Archive:
    """Searches for the plan with the best score, with an agent that proposes plans and sees their results.

    Wang et al., "AgentTTS: Large Language Model Agent for Test-time Compute-optimal Scaling Strategy in
    Complex Tasks", arXiv 2508.00890: an agent, an archive of trials and an environment that runs them.

    Args:
        stages: with their choices; a plan takes one of each.
        measure: the environment: runs a plan, such as `measure_plan` on a few questions.
        agent: proposes plans. None: `neighbours`, which asks no model; `language_agent` asks one.
        max_trials: maximum number of plans that are run.
        max_cost: highest cost of a plan that may be the best (`Trial.cost`). Agents are shown more expensive
            ones too.

    If an agent proposes nothing new, `neighbours` does; if that proposes nothing either, the search ends.

    Departures: written from the paper's abstract. Agents are shown what trials cost, in tokens per stage, and
    budgets limit the measured cost; prompts and the wording of the insights are ours; the archive is all that
    an agent knows of earlier rounds.
    """
    check_stages(stages)
    at_least(1, max_trials=max_trials)
    if max_cost is not None:
        number("max_cost", max_cost, low=0)
    trials: list[Trial] = []
    archive = Archive(stages, trials, max_cost)
    while len(trials) < max_trials:
        proposed = [] if agent is None else await _asked(agent, archive)
        fresh = _untried(archive, proposed) or _untried(archive, neighbours(archive))
        if not fresh:
            break
        for plan in fresh[: max_trials - len(trials)]:
            trials.append(await measure(plan))
    return archive


async def _asked(agent: Agent, archive: Archive) -> Sequence[Plan]:
    proposed = agent(archive)
    plans = await proposed if inspect.isawaitable(proposed) else proposed
    for plan in plans:
        check_plan(archive.stages, plan)
    return plans


def _untried(archive: Archive, plans: Sequence[Plan]) -> list[Plan]:
    """Returns the plans that are new, each once."""
    tried = {trial.plan for trial in archive.trials}
    return [plan for plan in dict.fromkeys(plans) if plan not in tried]


def neighbours(archive: Archive) -> list[Plan]:
    """Proposes plans without a model: every model in each stage first, then the neighbours of the best plan.

    The order follows AgentTTS's insights. First, each stage is tried with the cheapest choice of each of its
    models while the others stay at their first choice, because which model suits depends on the stage. Then
    one stage of the best plan moves to the next or the previous choice, because more helps only up to a
    point. Then one stage moves a choice up and another one down, because what a stage needs depends on the
    others.
    """
    stages = archive.stages
    first = tuple(0 for _ in stages)
    plans = [
        _changed(first, place, index) for place, stage in enumerate(stages) for index in _cheapest(stage)
    ]
    if _untried(archive, plans) or archive.best is None:
        return _untried(archive, plans)
    best = archive.best.plan
    around = [*_steps(stages, best, (1,)), *_steps(stages, best, (-1,))]
    around += [moved for plan in _steps(stages, best, (1,)) for moved in _steps(stages, plan, (-1,))]
    return _untried(archive, around)


def _cheapest(stage: Stage) -> Iterator[int]:
    """Yields the first choice of each model."""
    models = [choice.model for choice in stage.choices]
    return (models.index(model) for model in dict.fromkeys(models))


def _steps(stages: Sequence[Stage], plan: Plan, by: Sequence[int]) -> list[Plan]:
    """Returns the plan with one stage moved along its choices."""
    return [
        _changed(plan, place, plan[place] + step)
        for step in by
        for place, stage in enumerate(stages)
        if 0 <= plan[place] + step < len(stage.choices)
    ]


def _changed(plan: Plan, place: int, index: int) -> Plan:
    return (*plan[:place], index, *plan[place + 1 :])


PLANS = """A task has several stages. For each stage, one of the numbered choices is to be picked: a model, \
how it searches, and how many answers it samples.

{stages}

What is known of such tasks:
- Which model serves best differs from stage to stage; many samples of a small one may beat a large one.
- More samples help up to a point, which differs from stage to stage.
- What one stage is given changes what the later ones need.

Tried so far, as the choices of the stages in order, the share of questions solved, and the cost:
{trials}
{limit}
Propose up to {count} plans that were not tried and may solve more, or as many at less cost. Write each on a \
line of its own, as "plan:" and the numbers of the choices, such as "plan: {example}"."""
_PLAN = re.compile(r"plan:\s*(\d{1,6}(?:\s*,\s*\d{1,6})*)", re.IGNORECASE)


def language_agent(
    decoder: Decoder,
    *,
    num_plans: int = 3,
    sampling: SamplingParams | None = None,
    agent_prompt: str = PLANS,
) -> Agent:
    """Returns an agent whose proposals a language model writes; lines that name no plan are ignored.

    Args:
        num_plans: plans requested at a time.
        sampling: of its reply; default: the decoder's.
        agent_prompt: with the fields {stages}, {trials}, {limit}, {count} and {example}.
    """
    at_least(1, num_plans=num_plans)

    async def propose(archive: Archive) -> list[Plan]:
        text = agent_prompt.format(**_fields(archive, num_plans))
        prompt = [{"role": "user", "content": text}] if decoder.knows_chat else text
        root = await decoder.root(prompt, sampling)
        try:
            while not root.finished:
                await root.step()
            return read_plans(archive.stages, root.text)[:num_plans]
        finally:
            root.release()

    return propose


def read_plans(stages: Sequence[Stage], text: str) -> list[Plan]:
    """Returns the plans that a reply names, choices numbered from 1; those that do not fit are left out."""
    plans = []
    for found in _PLAN.finditer(text):
        plan = tuple(int(index) - 1 for index in found[1].split(","))
        fits = len(plan) == len(stages)
        if fits and all(i in range(len(s.choices)) for s, i in zip(stages, plan, strict=True)):
            plans.append(plan)
    return plans


def _fields(archive: Archive, count: int) -> dict[str, str]:
    stages = []
    for stage in archive.stages:
        choices = [f"  {i}. {choice}" for i, choice in enumerate(stage.choices, 1)]
        stages.append("\n".join([f"Stage {stage.name}:", *choices]))
    trials = [f"{_numbers(t.plan)}: {t.score:.0%} solved, cost {t.cost:.0f}" for t in archive.trials]
    limit = "" if archive.max_cost is None else f"A plan may cost {archive.max_cost:.0f} at most.\n"
    return {
        "stages": "\n".join(stages),
        "trials": "\n".join(trials) or "nothing",
        "limit": limit,
        "count": str(count),
        "example": _numbers(tuple(0 for _ in archive.stages)),
    }


def _numbers(plan: Plan) -> str:
    return ", ".join(str(index + 1) for index in plan)
