"""Adaptive-consistency: self-consistency that stops once the majority is settled."""

from __future__ import annotations

from collections import Counter
from typing import Literal

from tts_kernels.checks import number

from ...core.checks import at_least
from ...select import extract_answer, majority_probability
from ..answers import Extract, answers_of, concluded, sample
from ..result import Candidate, SearchResult
from ..run import SearchRun
from ..strategy import strategy


@strategy("answers in batches until the majority is settled")
async def adaptive_consistency(
    run: SearchRun,
    *,
    max_samples: int = 40,
    parallel: int = 4,
    threshold: float = 0.95,
    criterion: Literal["beta", "dirichlet"] = "beta",
    extract: Extract = extract_answer,
) -> SearchResult:
    """Samples answers until the most frequent one is probably the model's most probable one.

    Aggarwal et al., "Let's Sample Step by Step: Adaptive-Consistency for Efficient Reasoning and Coding with
    LLMs", arXiv 2305.11860, section 2 (its code: Pranjal2041/AdaptiveConsistency).

    Args:
        max_samples: maximum number of samples.
        parallel: samples drawn together; the criterion is checked after each batch. 1 is the paper's
            algorithm.
        threshold: posterior probability that ends the search.
        criterion: "beta": the first answer against the second; "dirichlet": against all answers seen.
        extract: the answer in a sample's text, or None to abstain.

    The winner and `best` are found as in `self_consistency`.

    Departures. Samples come in batches rather than one by one. At the default threshold a vote needs at least
    four samples, so a first batch of four wastes none. The Dirichlet probability is integrated exactly over
    all answers; the code draws random points for the five most frequent ones.
    """
    at_least(1, max_samples=max_samples, parallel=parallel)
    number("threshold", threshold, above=0, below=1)
    majority_probability([], criterion)  # checks it
    drawn: list[Candidate] = []
    while len(drawn) < max_samples and not run.over:
        drawn += await sample(run, min(parallel, max_samples - len(drawn)))
        counts = Counter(answer for answer in await answers_of(drawn, extract) if answer is not None)
        if majority_probability(list(counts.values()), criterion) >= threshold:
            break
    return await concluded(run, None, extract, drawn)
