"""Which candidate a search answers with, and how all of them vote, under one name in all strategies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from ..core.checks import check_choice
from ..select import elect, extract_answer, vote_weights
from .meaning import Extract, answers_of
from .result import Candidate

DecideBy = Literal["max", "last", "weighted", "majority"]
"""The rules of `Decision`."""


@dataclass(frozen=True)
class Decision:
    """How a search with scored candidates ends.

    Attributes:
        rule: "max": the candidate with the highest score, which the strategy computed from the scores of its
            steps (`agg_strategy`). "last": the one whose last step has the highest score. "weighted": the
            answer whose candidates have the largest sum of scores, which is best-of-N weighted (Li et al.,
            arXiv 2206.02336; Snell et al., arXiv 2408.03314, section 5.1). "majority": the answer of most
            candidates.
        extract: the answer in a text, or None to abstain. Answers with the same meaning count as one, in the
            wording of the first (`meaning.answers_of`).

    Only candidates that reached their own end count, unless none did. In that case those cut off before their
    first token do not count, unless all were. A vote chooses the best-scored candidate with the winning
    answer, or without scores the likeliest; if all abstain, the best of all. Ties go to the first. If a score
    is negative, a weighted vote counts the exponentials of all (`select.vote_weights`); without any scores it
    is a majority vote.
    """

    rule: str = "max"
    extract: Extract = extract_answer

    async def __call__(self, candidates: Sequence[Candidate]) -> tuple[int, dict[str, float]]:
        """Returns the index of the chosen candidate, of at least one, and the votes.

        The votes are those that the rule counts; if it counts none, a majority's.
        """
        able = [i for i, c in enumerate(candidates) if c.complete] or list(range(len(candidates)))
        able = [i for i in able if candidates[i].tokens] or able
        voters = [candidates[i] for i in able]
        votes, backers = elect(await answers_of(voters, self.extract), self._weights(voters))
        if self.rule in ("max", "last"):
            return max(able, key=lambda i: self._score(candidates[i])), votes
        return max((able[i] for i in backers), key=lambda i: _rank(candidates[i])), votes

    def _weights(self, voters: Sequence[Candidate]) -> list[float] | None:
        known = [i for i, c in enumerate(voters) if c.score is not None]
        if self.rule != "weighted" or not known:
            return None
        weights = [0.0] * len(voters)
        for i, weight in zip(known, vote_weights([voters[i].score or 0.0 for i in known]), strict=True):
            weights[i] = weight
        return weights

    def _score(self, candidate: Candidate) -> float:
        if self.rule == "last" and candidate.scores:
            return candidate.scores[-1]
        return -math.inf if candidate.score is None else candidate.score


def _rank(candidate: Candidate) -> tuple[float, float]:
    """Ranks by score; candidates without scores by their likelihood."""
    if candidate.score is not None:
        return candidate.score, 0.0
    mean = candidate.logprob / max(len(candidate.tokens), 1)
    return -math.inf, -math.inf if math.isnan(mean) else mean


def check_decision(decide_by: str, *own: str) -> None:
    """Raises ValueError unless the name is a rule of `Decision`, or one of the strategy's own."""
    check_choice("decide_by", decide_by, (*get_args(DecideBy), *own))
