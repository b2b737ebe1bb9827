"""How a search with several finished answers decides."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from tts_decode.rewards.scorer import Scorer
from tts_decode.search.result import Candidate, SearchResult
from tts_decode.search.run import SearchRun
from tts_decode.select import vote


def concluded(
    run: SearchRun,
    scorer: Scorer | None,
    extract: Callable[[str], str | None],
    among: Sequence[Candidate] | None = None,
) -> SearchResult:
    """The result: with a scorer the highest score wins, else a vote over the answers decides.

    among: who may vote, default all candidates; only those that came to their own end do, unless none did.
    Ties go to the answer that comes first. The best is the likeliest (mean log-probability a token) of those
    that gave the winning answer; of all voters, if all abstain.
    """
    if scorer is not None:
        return run.result()
    among = run.candidates if among is None else among
    voters = [candidate for candidate in among if candidate.complete] or among
    answers = [extract(candidate.text) for candidate in voters]
    votes = vote(answers)
    winner = next(iter(votes), None)
    winners = [c for c, answer in zip(voters, answers, strict=True) if answer == winner]
    return run.result(max(winners, key=_likelihood), votes)


def _likelihood(candidate: Candidate) -> float:
    """Mean log-probability a token, nats; an engine may not tell that of forced text."""
    mean = candidate.logprob / max(len(candidate.tokens), 1)
    return -math.inf if math.isnan(mean) else mean
