"""Repeated sampling: many answers, of which the first to pass a verifier is taken."""

from __future__ import annotations

from tts_kernels.checks import number

from ...core.checks import at_least
from ...rewards.scorer import Scorer
from ...select import extract_answer
from ..answers import Extract, concluded, sample, score_of
from ..decisions import DecideBy
from ..result import Candidate, SearchResult
from ..run import SearchRun
from ..strategy import strategy


@strategy("answers sampled until a verifier accepts one")
async def repeated_sampling(
    run: SearchRun,
    *,
    max_samples: int = 100,
    scorer: Scorer | None = None,
    parallel: int = 16,
    threshold: float = 1.0,
    decide_by: DecideBy = "max",
    extract: Extract = extract_answer,
) -> SearchResult:
    """Samples until an answer passes the verifier; without one, all samples vote.

    Brown et al., "Large Language Monkeys: Scaling Inference Compute with Repeated Sampling", arXiv
    2407.21787, section 2.

    Args:
        max_samples: maximum number of samples.
        scorer: the verifier: tests, a proof checker (`rewards.verifier`), or a reward model. None: a majority
            vote over all samples.
        parallel: samples drawn together.
        threshold: score from which an answer passes. If none does, the best-scored one wins, so an
            unreachable threshold makes it best-of-n.
        decide_by: as in `best_of_n`, if no sample passed.
        extract: the answer in a sample's text, or None to abstain.

    What the samples could reach under a perfect verifier is their coverage: `select.pass_at_k` and
    `select.coverage_curve` estimate it without bias from how many samples of each problem are right;
    `python -m benches.coverage_curve` draws the curve of a model.

    Departures. The paper draws all samples and counts afterwards; here sampling ends once one passes, which
    changes the cost but not the answer, apart from others of the same batch.
    """
    at_least(1, max_samples=max_samples, parallel=parallel)
    run.decide_by(decide_by, extract)
    number("threshold", threshold)
    drawn: list[Candidate] = []
    while len(drawn) < max_samples and not run.over:
        latest = await sample(run, min(parallel, max_samples - len(drawn)), scorer)
        drawn += latest
        if scorer is not None:
            passed = [c for c in latest if c.complete and score_of(c) >= threshold]
            if passed:
                return await run.result(passed[0])
    return await concluded(run, scorer, extract, drawn)
