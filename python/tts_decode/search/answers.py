"""Whole answers: how strategies make them, compare them, and choose one."""

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
    """Samples the branch to its end, unless it is there. It becomes a candidate, scored if there is a scorer,
    and its pages return."""
    await run.complete(branch)
    if scorer is not None:
        await run.score([branch], scorer)
    return run.end(branch)


async def sample(
    run: SearchRun, n: int, scorer: Scorer | None = None, *, root: Branch | None = None
) -> list[Candidate]:
    """`n` forks of a branch (default: the run's root), each finished on its own, in order."""
    return await gather(finish(run, branch, scorer) for branch in run.fork(root or run.root, n))


async def root_on(run: SearchRun, decoder: Decoder) -> Branch:
    """A branch of another model where the search begins, held by the run; token ids become text for it."""
    root = run.root
    if not isinstance(root.prompt, str) and not all(isinstance(item, Mapping) for item in root.prompt):
        return await run.prompt(root.full_text, decoder=decoder)
    branch = await run.prompt(root.prompt, decoder=decoder)
    if root.text:
        await run.extend(branch, root.text)
    return branch


# -- compared


def eligible(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Those that came to their own end, or all if none did."""
    return [c for c in candidates if c.complete] or list(candidates)


def distinct(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The first candidate of each text, in order."""
    firsts: dict[str, Candidate] = {}
    for candidate in candidates:
        firsts.setdefault(candidate.text, candidate)
    return list(firsts.values())


def likelihood(candidate: Candidate) -> float:
    """Mean log-probability of a token, nats, as lengths differ; -inf where the engine did not tell."""
    value = candidate.logprob / max(len(candidate.tokens), 1)
    return -math.inf if math.isnan(value) else value


def likeliest(candidates: Sequence[Candidate]) -> Candidate:
    return max(candidates, key=likelihood)


def score_of(candidate: Candidate) -> float:
    """Its score; one that was not scored ranks below every other."""
    return -math.inf if candidate.score is None else candidate.score


def spoken(text: str, end_of_thinking: str = "</think>") -> str:
    """What an answer says once its thinking is over; all of it where no such end is found."""
    return (text.rpartition(end_of_thinking)[2] if end_of_thinking else text).strip()


# -- chosen


async def elected(
    candidates: Sequence[Candidate],
    extract: Extract,
    weights: Sequence[float] | None = None,
    rank: Callable[[Candidate], float] = likelihood,
) -> tuple[Candidate, dict[str, float]]:
    """The best-ranked one of those that gave the answer with most votes, or of all if all abstain; the votes.
    Ties go to the first."""
    votes, backers = elect(await answers_of(candidates, extract), weights)
    return max((candidates[i] for i in backers), key=rank), votes


async def decide(
    run: SearchRun,
    candidates: Sequence[Candidate],
    extract: Extract,
    weights: Sequence[float] | None = None,
    rank: Callable[[Candidate], float] = likelihood,
) -> SearchResult:
    """The result of a vote, as in `elected`."""
    return await run.result(*await elected(candidates, extract, weights, rank))


async def concluded(
    run: SearchRun, scorer: Scorer | None, extract: Extract, among: Sequence[Candidate]
) -> SearchResult:
    """The result: with a scorer the highest score wins, else a vote of those `among` that came to their own
    end, or of all if none did."""
    if scorer is not None:
        return await run.result()
    return await decide(run, eligible(among), extract)


async def choose(run: SearchRun, chosen: Candidate | None, scores: Mapping[str, float]) -> SearchResult:
    """The result with `chosen` as best, or the one that the run decides by; candidates carry the scores of
    their texts."""
    run.candidates = [replace(c, score=scores.get(c.text)) for c in run.candidates]
    return await run.result(None if chosen is None else replace(chosen, score=scores[chosen.text]))
