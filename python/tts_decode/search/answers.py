"""Whole answers: how strategies make, compare and choose them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ..core.running import gather
from ..rewards.scorer import Scorer
from ..select import elect
from .meaning import Extract as Extract
from .meaning import answers_of as answers_of
from .result import Candidate, SearchResult
from .run import SearchRun

if TYPE_CHECKING:
    from ..core.interfaces import Branch, Decoder

# -- made


async def finish(run: SearchRun, branch: Branch, scorer: Scorer | None = None) -> Candidate:
    """Samples the branch to its end, makes it a candidate and frees its pages.

    A branch at its end is not sampled. With a scorer, the candidate is scored.
    """
    await run.complete(branch)
    if scorer is not None:
        await run.score([branch], scorer)
    return run.end(branch)


async def sample(
    run: SearchRun, n: int, scorer: Scorer | None = None, *, root: Branch | None = None
) -> list[Candidate]:
    """Finishes `n` forks of a branch (default: the run's root) and returns the candidates in order."""
    return await gather(finish(run, branch, scorer) for branch in run.fork(root or run.root, n))


async def root_on(run: SearchRun, decoder: Decoder) -> Branch:
    """Returns another model's branch at the start of the search, held by the run.

    Token ids are turned into text for it.
    """
    root = run.root
    if not isinstance(root.prompt, str) and not all(isinstance(item, Mapping) for item in root.prompt):
        return await run.prompt(root.full_text, decoder=decoder)
    branch = await run.prompt(root.prompt, decoder=decoder)
    if root.text:
        await run.extend(branch, root.text)
    return branch


# -- compared


def eligible(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Returns the candidates that reached their own end, or all if none did."""
    return [c for c in candidates if c.complete] or list(candidates)


def distinct(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Returns the first candidate of each text, in order."""
    firsts: dict[str, Candidate] = {}
    for candidate in candidates:
        firsts.setdefault(candidate.text, candidate)
    return list(firsts.values())


def likelihood(candidate: Candidate) -> float:
    """Returns the mean log-probability per token, nats, because lengths differ; -inf if unknown."""
    value = candidate.logprob / max(len(candidate.tokens), 1)
    return -math.inf if math.isnan(value) else value


def likeliest(candidates: Sequence[Candidate]) -> Candidate:
    return max(candidates, key=likelihood)


def score_of(candidate: Candidate) -> float:
    """Returns its score; a candidate without a score ranks below all others."""
    return -math.inf if candidate.score is None else candidate.score


def spoken(text: str, end_of_thinking: str = "</think>") -> str:
    """Returns what an answer says after its thinking; all of it if no end of thinking is found."""
    return (text.rpartition(end_of_thinking)[2] if end_of_thinking else text).strip()


# -- chosen


async def elected(
    candidates: Sequence[Candidate],
    extract: Extract,
    weights: Sequence[float] | None = None,
    rank: Callable[[Candidate], float] = likelihood,
) -> tuple[Candidate, dict[str, float]]:
    """Returns the best-ranked candidate with the winning answer, and the votes.

    If all abstain, it is the best-ranked of all. Ties go to the first.
    """
    votes, backers = elect(await answers_of(candidates, extract), weights)
    return max((candidates[i] for i in backers), key=rank), votes


async def decide(
    run: SearchRun,
    candidates: Sequence[Candidate],
    extract: Extract,
    weights: Sequence[float] | None = None,
    rank: Callable[[Candidate], float] = likelihood,
) -> SearchResult:
    """Returns the result of a vote, as in `elected`."""
    return await run.result(*await elected(candidates, extract, weights, rank))


async def concluded(
    run: SearchRun, scorer: Scorer | None, extract: Extract, among: Sequence[Candidate]
) -> SearchResult:
    """Returns the result: the highest score with a scorer, otherwise a vote.

    Only the candidates of `among` that reached their own end vote, or all if none did.
    """
    if scorer is not None:
        return await run.result()
    return await decide(run, eligible(among), extract)


async def choose(run: SearchRun, chosen: Candidate | None, scores: Mapping[str, float]) -> SearchResult:
    """Returns the result with `chosen` as best, or, if None, the one that the run decides for.

    scores: of texts; the candidates with these texts carry them.
    """
    run.candidates = [replace(c, score=scores.get(c.text)) for c in run.candidates]
    return await run.result(None if chosen is None else replace(chosen, score=scores[chosen.text]))
