"""Measures what each setting solves on a set of questions with answers, and makes a policy of it."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from ..core.checks import at_least
from ..core.running import gather
from ..rewards.scorer import Scorer
from ..select import difficulty_bin, difficulty_edges
from .answers import sample
from .policy import Policy, Setting
from .run import SearchRun

if TYPE_CHECKING:
    from ..core.interfaces import Decoder
    from ..core.params import SamplingParams
    from ..core.prompts import Prompt


class Question(Protocol):
    """The interface of `tts_decode.tasks.Task`."""

    @property
    def prompt(self) -> str: ...
    @property
    def verify(self) -> Callable[[str], float] | None: ...


@dataclass(frozen=True)
class Measured:
    """A question's mean probe score, and for each setting whether it solved it and the tokens it took."""

    mean_score: float
    solved: tuple[bool, ...]
    tokens: tuple[int, ...]


async def measure_settings(
    decoder: Decoder,
    questions: Sequence[Question],
    settings: Sequence[Setting],
    *,
    n: int,
    scorer: Scorer,
    num_probes: int = 4,
    agg_strategy: str = "last",
    sampling: SamplingParams | None = None,
    make_prompt: Callable[[str], Prompt] = str,
    parallel: int = 4,
) -> list[Measured]:
    """Searches each question with each setting at size `n`.

    All settings of `parallel` questions run in one batch.

    Args:
        n, scorer, num_probes, agg_strategy: as `compute_optimal` will be called.
        questions: with verifiers, whose 1 is a solved question.
        make_prompt: makes the prompt from a question's text, for example chat messages.

    Raises:
        ValueError: a question has no verifier, or a setting's options do not fit `n`.
    """
    at_least(1, n=n, num_probes=num_probes, parallel=parallel)
    slots = asyncio.Semaphore(parallel)
    for setting in settings:
        setting.check_size(n)
    known = {"scorer": scorer, "agg_strategy": agg_strategy}

    async def measure(question: Question) -> Measured:
        verify = question.verify
        if verify is None:
            raise ValueError("questions: got one without a verifier, expected answers to compare with")
        async with slots:
            return await searched(question.prompt, verify)

    async def searched(prompt: str, verify: Callable[[str], float]) -> Measured:
        root = await decoder.root(make_prompt(prompt), sampling)
        try:
            run = SearchRun(root)
            with run.of("probes", {}):
                probes = await sample(run, num_probes, scorer)
            mean = math.fsum(probe.scores[-1] for probe in probes) / num_probes
            results = await gather(
                setting.strategy(root, **setting.arguments(n, known)) for setting in settings
            )
        finally:
            root.release()
        solved = tuple(verify(result.best.text) >= 1 for result in results)
        return Measured(mean, solved, tuple(result.stats.generated_tokens for result in results))

    return await gather(measure(question) for question in questions)


def fit_policy(measured: Sequence[Measured], settings: Sequence[Setting], bins: int = 5) -> Policy:
    """Returns the policy that takes, in each bin, the setting which solved most of its questions.

    Snell et al., arXiv 2408.03314, section 3: bins hold equal shares of the questions by the mean score of
    their probes. Among settings that solved equally many, the one with fewer tokens wins.

    Its `about` has `questions` by bin, `accuracy` and mean `tokens` by bin and setting,
    `accuracy_of_single_settings` on all questions, and `cross_validated`: the accuracy of policies fitted on
    every other question, measured on the questions between (None if a half has fewer questions than bins).
    """
    edges = difficulty_edges([question.mean_score for question in measured], bins)
    chosen, table = _choose(measured, len(settings), edges)
    about: dict[str, Any] = dict(table, candidates=[str(setting) for setting in settings])
    about["accuracy_of_single_settings"] = [
        sum(question.solved[i] for question in measured) / len(measured) for i in range(len(settings))
    ]
    about["cross_validated"] = _cross_validated(measured, len(settings), bins)
    return Policy(edges, [settings[i] for i in chosen], about)


def _choose(
    measured: Sequence[Measured], num_settings: int, edges: Sequence[float]
) -> tuple[list[int], dict[str, list[Any]]]:
    """Returns the setting of each bin, and the measurements by bin and setting."""
    chosen: list[int] = []
    table: dict[str, list[Any]] = {"questions": [], "accuracy": [], "tokens": []}
    for index in range(len(edges) + 1):
        inside = [q for q in measured if difficulty_bin(q.mean_score, edges) == index] or measured
        solved = [sum(question.solved[i] for question in inside) for i in range(num_settings)]
        tokens = [sum(question.tokens[i] for question in inside) for i in range(num_settings)]
        chosen.append(min(range(num_settings), key=lambda i: (-solved[i], tokens[i])))
        table["questions"].append(len(inside))
        table["accuracy"].append([count / len(inside) for count in solved])
        table["tokens"].append([count / len(inside) for count in tokens])
    return chosen, table


def _cross_validated(measured: Sequence[Measured], num_settings: int, bins: int) -> float | None:
    halves = measured[::2], measured[1::2]
    if min(map(len, halves)) < bins:
        return None
    right = 0
    for fitted, held_out in (halves, halves[::-1]):
        edges = difficulty_edges([question.mean_score for question in fitted], bins)
        chosen, _ = _choose(fitted, num_settings, edges)
        right += sum(q.solved[chosen[difficulty_bin(q.mean_score, edges)]] for q in held_out)
    return right / len(measured)
