"""What strategies over whole answers share: sampling them, choosing among them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from tts_decode import gather
from tts_decode.search.result import Candidate, SearchResult
from tts_decode.search.run import SearchRun
from tts_decode.select import vote

if TYPE_CHECKING:
    from tts_decode.branch import Branch

Extract = Callable[[str], "str | None"]
"""The answer in a sample's text, or None to abstain."""


async def sample(run: SearchRun, n: int, root: Branch | None = None) -> list[Candidate]:
    """`n` forks of a branch (default: the run's root) to their end, in order; each becomes a candidate, and
    its pages return, as soon as it ends."""

    async def whole(branch: Branch) -> Candidate:
        return run.end(await run.complete(branch))

    return await gather(whole(branch) for branch in run.fork(root or run.root, n))


def eligible(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Those that came to their own end, or all if none did."""
    return [c for c in candidates if c.complete] or list(candidates)


def distinct(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The first candidate of each text."""
    return list({c.text: c for c in reversed(candidates)}.values())[::-1]


def likelihood(candidate: Candidate) -> float:
    """Mean log-probability of a token, nats, as lengths differ; -inf where the engine did not tell."""
    value = candidate.logprob / max(len(candidate.tokens), 1)
    return -math.inf if math.isnan(value) else value


def likeliest(candidates: Sequence[Candidate]) -> Candidate:
    return max(candidates, key=likelihood)


def choose(run: SearchRun, chosen: Candidate, scores: Mapping[str, float]) -> SearchResult:
    """The result with `chosen` as best; candidates carry the scores of their texts."""
    run.candidates = [replace(c, score=scores.get(c.text)) for c in run.candidates]
    return run.result(replace(chosen, score=scores[chosen.text]))


def decide(
    run: SearchRun,
    candidates: Sequence[Candidate],
    answers: Sequence[str | None],
    weights: Sequence[float] | None = None,
) -> SearchResult:
    """The result of a vote: best is the likeliest candidate of those that gave the winning answer, or the
    likeliest of all if all abstained."""
    votes = vote(answers, weights)
    winner = next(iter(votes), None)
    winners = [c for c, answer in zip(candidates, answers, strict=True) if answer == winner]
    return run.result(likeliest(winners), votes)
