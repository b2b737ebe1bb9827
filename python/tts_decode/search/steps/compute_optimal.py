"""Compute-optimal scaling: a question's difficulty decides how it is searched."""

from __future__ import annotations

import math

from tts_kernels.checks import instance

from ...core.checks import at_least
from ...rewards.scorer import Scorer
from ...select import extract_answer
from ..answers import Extract, sample
from ..decisions import DecideBy
from ..policy import Policy, Setting
from ..result import SearchResult
from ..run import SearchRun
from ..sampling import best_of_n
from ..strategy import strategy
from .beam_search import beam_search
from .dvts import dvts

DEFAULT_POLICY = Policy(
    (0.49, 0.44, 0.39, 0.37),
    (Setting(best_of_n), Setting(best_of_n), Setting(beam_search), Setting(beam_search), Setting(dvts)),
)
"""The paper's findings for search with a verifier; the edges divide 40 of the default problems evenly by
`mean_probability` of SmolLM2-135M-Instruct."""


@strategy("a few samples tell how hard the question is, which chooses the strategy")
async def compute_optimal(
    run: SearchRun,
    *,
    n: int = 16,
    scorer: Scorer,
    policy: Policy | str | None = None,
    num_probes: int = 4,
    decide_by: DecideBy = "max",
    agg_strategy: str = "last",
    extract: Extract = extract_answer,
) -> SearchResult:
    """Bins the question by the mean score of a few sampled answers; each bin has its own setting.

    Snell et al., "Scaling LLM Test-Time Compute Optimally", arXiv 2408.03314, section 3 (model-predicted
    difficulty); Liu et al., "Can 1B LLM Surpass 405B LLM?", arXiv 2502.06703, make the choice depend on the
    model and the scorer too: search wins on small models, best-of-n on large ones. A setting is a search or
    sequential revisions.

    Args:
        n: size of the chosen setting; the probes come on top.
        scorer: scores probes and search.
        policy: edges of the bins and the setting of each, or a file of these (`Policy.save`). A setting is a
            strategy with options; `revisions` with its `num_sequential` is the paper's second axis.
            `fit_policy` makes a policy, as published, from the results of `measure_settings` on questions
            with answers. None: `DEFAULT_POLICY`, best-of-n for the two easiest of five bins and beam search
            for the next two, diverse verifier tree search for the hardest, where the paper finds no method
            that helps. Its edges fit one model and scorer: fit your own.
        num_probes: answers sampled to estimate the difficulty; they stay candidates.
        decide_by, agg_strategy, extract: as in `beam_search`, for settings whose own options do not include
            them.

    Departures. The paper estimates the difficulty from 2048 samples per question and does not count their
    cost.
    """
    at_least(1, n=n, num_probes=num_probes)
    chosen_by = DEFAULT_POLICY if policy is None else policy
    if isinstance(chosen_by, str):
        chosen_by = Policy.load(chosen_by)
    instance("policy", chosen_by, Policy, "a str is the path of a saved one")
    for setting in chosen_by.settings:
        setting.check_size(n)
    run.aggregate_by(agg_strategy)
    run.decide_by(decide_by, extract)
    samples = await sample(run, num_probes, scorer)
    if run.over:
        return await run.result()
    setting = chosen_by.setting(math.fsum(c.scores[-1] for c in samples) / num_probes)
    known = {"scorer": scorer, "decide_by": decide_by, "agg_strategy": agg_strategy, "extract": extract}
    return await setting.strategy.body(run, **setting.arguments(n, known))
