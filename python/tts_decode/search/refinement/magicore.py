"""MAgICoRe: easy questions get a weighted vote, hard ones a loop of review and refinement."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...core.checks import at_least
from ...core.running import gather
from ...errors import PromptTooLongError
from ...rewards.scorer import Scorer
from ...select import extract_answer, vote, vote_confidence, vote_weights
from ..answers import Extract, answers_of, decide, eligible, score_of
from ..result import Candidate, SearchResult
from ..run import SearchRun
from ..strategy import strategy
from .thread import Thread

if TYPE_CHECKING:
    from ...core.interfaces import Branch

_SOLVED = (
    "{question}\n\nA solution, each step with a score of how likely it is right, 0 to 1:\n{solution}\n\n"
)
REVIEW = (
    _SOLVED + "Which steps are wrong or doubtful, why, and how can they be mended? Look at low scores first."
)
REFINE = _SOLVED + "A review of it:\n{review}\n\nWrite a corrected solution, step by step, without scores."


@dataclass(frozen=True)
class _Solution:
    """candidate: `scores` are of its steps. steps: their texts. rewards: process; outcome if there is one."""

    candidate: Candidate
    steps: tuple[str, ...]
    rewards: tuple[float, ...]

    @property
    def reward(self) -> float:
        return sum(self.rewards)

    @property
    def annotated(self) -> str:
        scored = zip(self.steps, self.candidate.scores, strict=True)
        return "\n".join(f"{text.strip()} [score: {score:.2f}]" for text, score in scored if text.strip())


@strategy("a weighted vote where the scores are good or agree, else review and refinement of every answer")
async def magicore(
    run: SearchRun,
    *,
    n: int = 16,
    scorer: Scorer,
    outcome_scorer: Scorer | None = None,
    max_rounds: int = 3,
    reward_threshold: float = 0.5,
    confidence_threshold: float = 0.5,
    review_prompt: str = REVIEW,
    refine_prompt: str = REFINE,
    agg_strategy: str = "prod",
    extract: Extract = extract_answer,
) -> SearchResult:
    """Writes `n` solutions; reviews and rewrites them by their step scores while the question looks hard.

    Chen et al., "MAgICoRe: Multi-Agent, Iterative, Coarse-to-Fine Refinement for Reasoning", arXiv
    2409.12147 (its code: dinobby/MAgICoRe). The question is easy if the majority's answer has a
    mean reward of `reward_threshold`, or if the weighted votes are confident (`select.vote_confidence`).

    Args:
        n: solutions (40 in the paper).
        scorer: a process reward model, called after every step; scores from 0 to 1 are the votes' weights. If
            a reward is negative, the weights are exponentials; then choose an `agg_strategy` other than
            "prod".
        outcome_scorer: a second scorer, for whole answers. A solution's reward is the sum of both, and each
            must be confident of its own vote. None: the process scores alone.
        max_rounds: rounds of review and refinement; after each, the newest solutions decide again whether the
            question is easy.
        reward_threshold: mean reward of the majority above which the question is easy. The code uses the mean
            over a dataset's first samples; with two scorers rewards lie between 0 and 2.
        confidence_threshold: confidence of the vote above which the question is easy: 1 for a unanimous vote,
            0.5 for three answers of equal weight.
        review_prompt: with the fields {question} and {solution}, its steps with their scores.
        refine_prompt: with the field {review} too.
        agg_strategy: how one process reward is computed from the scores of the steps.
        extract: the answer in a text, or None to abstain.

    The `n` best-rewarded solutions, old and new, stay and vote with their rewards; `best` is the
    best-rewarded solution with the winning answer. Departures: prompts are ours and have no worked examples;
    abstentions do not vote; new solutions join all that stayed, where the code's third iteration forgets the
    first.
    """
    at_least(1, n=n)
    at_least(0, max_rounds=max_rounds)
    run.aggregate_by(agg_strategy)

    async def solve(branch: Branch) -> _Solution:
        steps = []
        while not branch.finished:
            (made,) = await run.step([branch])
            if made.tokens:
                await run.score([branch], scorer)
                steps.append(made.text)
        rewards = run.aggregated([branch]) if branch.scores else [0.0]
        if outcome_scorer is not None:
            rewards += await run.score([branch], outcome_scorer)
            branch.scores.pop()  # the steps' scores stay
        return _Solution(run.end(branch, sum(rewards)), tuple(steps), tuple(rewards))

    async def refine(old: _Solution) -> _Solution:
        thread, sources = Thread(run), (old.candidate.node,)
        fields = {"question": run.question, "solution": old.annotated}
        (fields["review"],) = await thread.replies(review_prompt.format(**fields), sources=sources)
        (branch,) = await thread.branches(refine_prompt.format(**fields), sources=sources)
        new = await solve(branch)
        thread.close()
        return new

    async def easy(solutions: Sequence[_Solution]) -> bool:
        answers = await answers_of([solution.candidate for solution in solutions], extract)
        majority = next(iter(vote(answers)), None)
        rewards = [s.reward for s, answer in zip(solutions, answers, strict=True) if answer == majority]
        columns = zip(*(solution.rewards for solution in solutions), strict=True)
        return sum(rewards) / len(rewards) >= reward_threshold or all(
            vote_confidence(list(vote(answers, vote_weights(column)).values())) >= confidence_threshold
            for column in columns
        )

    latest = await gather(solve(branch) for branch in run.fork(run.root, n))
    kept = latest
    with suppress(PromptTooLongError):
        for _ in range(max_rounds):
            if run.over or await easy(latest):
                break
            latest = await gather(refine(solution) for solution in latest)
            kept = sorted(kept + latest, key=lambda s: (s.candidate.complete, s.reward), reverse=True)[:n]
    voters = eligible([solution.candidate for solution in kept])
    return await decide(run, voters, extract, vote_weights([c.score or 0.0 for c in voters]), rank=score_of)
