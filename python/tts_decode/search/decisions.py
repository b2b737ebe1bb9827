"""Which candidate a search answers with, and how all of them vote: one rule by one name in every strategy."""

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
        rule: "max": the candidate with the highest score, which the strategy made of the scores of its steps
            (`agg_strategy`); "last": the one whose last step has the highest score; "weighted": the answer
            whose candidates have the largest sum of scores, which is best-of-N weighted (Li et al., arXiv
            2206.02336; Snell et al., arXiv 2408.03314, section 5.1); "majority": the answer of most
            candidates.
        extract: the answer in a text, or None to abstain. Answers that mean the same are one, under the first
            one's text (`meaning.answers_of`).

    Only candidates that came to their own end are looked at, unless none did, and of those none that was cut
    off before its first token, unless all were. The candidate of a vote is the best-scored one with the
    winning answer, without scores the likeliest; if all abstain, of all. Ties go to the first. If a score is
    negative, a weighted vote counts the exponentials of all (`select.vote_weights`); where there are no
    scores at all it is a majority's.
    """

    rule: str = "max"
    extract: Extract = extract_answer

    async def __call__(self, candidates: Sequence[Candidate]) -> tuple[int, dict[str, float]]:
        """Index of the chosen one of at least one candidate, and the votes: those that the rule counts, and
        of a rule that counts none those of a majority."""
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
    """By score; those that have none by their likelihood."""
    if candidate.score is not None:
        return candidate.score, 0.0
    mean = candidate.logprob / max(len(candidate.tokens), 1)
    return -math.inf, -math.inf if math.isnan(mean) else mean


def check_decision(decide_by: str, *own: str) -> None:
    """ValueError unless it names a rule of `Decision`, or one of the strategy's own."""
    check_choice("decide_by", decide_by, (*get_args(DecideBy), *own))
