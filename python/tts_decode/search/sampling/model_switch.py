"""ModelSwitch: asks the next model only if the first one contradicts itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tts_kernels.checks import number

from ...core.checks import at_least
from ...select import agreement, consistency_weight, extract_answer
from ..answers import Extract, answers_of, decide, eligible, root_on, sample
from ..result import Candidate, SearchResult
from ..run import SearchRun
from ..strategy import strategy

if TYPE_CHECKING:
    from ...core.interfaces import Decoder


@strategy("answers of one model, of the next too if they disagree")
async def model_switch(
    run: SearchRun,
    *,
    n: int = 5,
    decoders: Sequence[Decoder] = (),
    threshold: float = 1.0,
    priors: Sequence[float] | None = None,
    extract: Extract = extract_answer,
) -> SearchResult:
    """Samples `n` answers per model until the answers of one model agree; then takes a weighted vote.

    Chen et al., "Do We Truly Need So Many Samples? Multi-LLM Repeated Sampling Efficiently Scales Test-Time
    Compute", arXiv 2504.00762, section 3 (its code: JianhaoChen-nju/ModelSwitch).

    Args:
        n: samples of each model.
        decoders: models to switch to, in order, after the root's own.
        threshold: share of a model's answers that must agree to end the search.
        priors: weight of each model, the root's first; None: 1 each. The paper sets them from knowledge about
            the models.
        extract: the answer in a sample's text, or None to abstain.

    The weight of a sample's vote is its model's prior times the agreement of that model's own answers
    (`select.consistency_weight`); `best` is found as in `self_consistency`, likelihoods being each model's
    own. Without `decoders` it is self-consistency.

    Departures. None. Every model continues from what the root has already generated.
    """
    at_least(1, n=n)
    number("threshold", threshold, above=0, high=1)
    if priors is None:
        priors = [1.0] * (1 + len(decoders))
    if len(priors) != 1 + len(decoders):
        raise ValueError(
            f"priors: got {len(priors)} entries, expected one for each of {1 + len(decoders)} models, the "
            "root's first"
        )
    voters: list[Candidate] = []
    weights: list[float] = []
    for decoder, prior in zip([None, *decoders], priors, strict=True):
        if decoder is None:
            samples = eligible(await sample(run, n))
        else:
            root = await root_on(run, decoder)
            samples = eligible(await sample(run, n, root=root))
            run.prune([root])
        answers = await answers_of(samples, extract)
        voters += samples
        weights += [prior * consistency_weight(answers)] * len(samples)
        if agreement(answers) >= threshold or run.over:
            break
    return await decide(run, voters, extract, weights)
