"""RPC: a vote by the answers' probability mass, without the improbable samples."""

from __future__ import annotations

import math

from ...core.checks import at_least
from ...errors import UnsupportedByEngineError
from ...select import extract_answer, probable_paths
from ..answers import Extract, decide, distinct, eligible, likelihood, sample
from ..result import SearchResult
from ..run import SearchRun
from ..strategy import strategy


@strategy("a vote by probability mass, improbable samples pruned")
async def rpc(
    run: SearchRun, *, n: int = 16, prune: bool = True, extract: Extract = extract_answer
) -> SearchResult:
    """Draws `n` independent samples; the answer with the largest probability mass wins.

    Zhou et al., "A Theoretical Study on Bridging Internal Probability and Self-Consistency for LLM
    Reasoning", arXiv 2510.15444, section 4; its first version is arXiv 2502.00511 (its code: WNJXYK/RPC).
    Perplexity Consistency: the weight of a sample's vote is the probability that the model itself gave it, so
    that the error falls exponentially rather than linearly in `n`. Reasoning Pruning: samples fall into two
    populations, and those of the improbable one do not vote; see `select.probable_paths`.

    Args:
        n: number of samples.
        prune: drops improbable samples.
        extract: the answer in a sample's text, or None to abstain.

    As in the code, a text sampled twice counts once, and a sample's probability is the geometric mean over
    its tokens: products over hundreds of tokens would let a single sample decide.

    Departures. If masses are equal, the answer sampled first wins; the code counts each by its share.
    """
    at_least(1, n=n)
    paths = distinct(eligible(await sample(run, n)))
    if all(math.isnan(path.logprob) for path in paths):
        raise UnsupportedByEngineError(
            "rpc weighs samples by their log-probabilities, which the engine hides"
        )
    probabilities = [math.exp(likelihood(path)) for path in paths]
    kept = probable_paths(probabilities) if prune else [True] * len(paths)
    weights = [p if keep else 0.0 for p, keep in zip(probabilities, kept, strict=True)]
    return await decide(run, paths, extract, weights)
