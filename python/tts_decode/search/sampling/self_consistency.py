"""Self-consistency: samples whole answers and takes a vote over their conclusions."""

from __future__ import annotations

from ...core.checks import at_least
from ...rewards.scorer import Scorer
from ...select import extract_answer, vote_weights
from ..answers import Extract, decide, eligible, sample
from ..result import SearchResult
from ..run import SearchRun
from ..strategy import strategy


@strategy("n independent answers, a vote decides")
async def self_consistency(
    run: SearchRun,
    *,
    n: int = 16,
    scorer: Scorer | None = None,
    extract: Extract = extract_answer,
) -> SearchResult:
    """Draws `n` independent samples; the answer that most of them give wins.

    Wang et al., "Self-Consistency Improves Chain of Thought Reasoning in Language Models", arXiv 2203.11171,
    section 2; with `scorer`, its weighted variant.

    Args:
        n: number of samples.
        scorer: None: one vote each. Otherwise a sample's score is the weight of its vote; if one is negative,
            the exponential of it (`select.vote_weights`).
        extract: the answer in a sample's text, or None to abstain.

    Only samples that reached their own end vote, unless none did. Ties go to the answer of the lower fork.
    `best` is the likeliest sample with the winning answer, by mean log-probability per token, or the
    likeliest of all samples if all abstain. `votes` has the counts.

    Departures. None.
    """
    at_least(1, n=n)
    voters = eligible(await sample(run, n, scorer))
    weights = None if scorer is None else vote_weights([c.score or 0.0 for c in voters])
    return await decide(run, voters, extract, weights)
