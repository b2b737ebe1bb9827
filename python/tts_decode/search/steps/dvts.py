"""Diverse verifier tree search: independent subtrees, each of which follows its best step."""

from __future__ import annotations

from ...core.checks import at_least
from ...core.running import gather
from ...rewards.scorer import Scorer
from ...select import extract_answer, top_k
from ..answers import Extract
from ..decisions import DecideBy
from ..result import SearchResult
from ..run import SearchRun
from ..strategy import strategy
from .beams import check_beams


@strategy("n/beam_width subtrees, each keeps the best of its beam_width steps")
async def dvts(
    run: SearchRun,
    *,
    n: int = 16,
    scorer: Scorer,
    beam_width: int = 4,
    max_steps: int = 40,
    decide_by: DecideBy = "max",
    agg_strategy: str = "last",
    extract: Extract = extract_answer,
) -> SearchResult:
    """Grows `n // beam_width` independent subtrees; each samples `beam_width` steps and keeps the best.

    Beeching, Tunstall and Rush, "Scaling Test-Time Compute with Open Models", Hugging Face 2024, and its code
    search-and-learn. Beam search concentrates its width where scores are high early on; here the width stays
    spread over the subtrees.

    Args:
        n: steps sampled at a time, over all subtrees.
        scorer: scores every step.
        beam_width: steps sampled in each subtree, a divisor of `n`: the M of beam search.
        max_steps: depth at which the search ends with what it has.
        decide_by: which candidate is the answer: "max", the best-scored one; "last", the one with the best
            last step; "weighted" or "majority", a vote of answers. See `search.decisions`.
        agg_strategy: how one score is computed from the scores on a step's path: a name of
            `select.aggregation`.
        extract: the answer in a text, or None to abstain.

    A subtree ends when its best step finishes the answer; other finished samples of that step are candidates
    too. The answer is the best-scored candidate.

    Departures. Subtrees do not wait for each other, so the scorer gets one subtree at a time. The search ends
    at `max_steps`; the code samples the rest of every answer in one go. The code also ends a subtree when the
    text holds a boxed answer: give the root stop strings or end-of-sequence tokens for that.
    """
    check_beams(n, beam_width)
    at_least(1, max_steps=max_steps)
    run.aggregate_by(agg_strategy)
    run.decide_by(decide_by, extract)

    async def subtree() -> None:
        live = run.fork(run.root, beam_width)
        for step in range(1, max_steps + 1):
            await run.step(live)
            await run.score(live, scorer)
            best = top_k(run.aggregated(live), 1)[0]
            if live[best].finished and not run.over:
                run.prune([branch for branch in live if not branch.finished])
                live = [branch for branch in live if branch.finished]
                break
            if run.over or step == max_steps:
                break
            live = run.expand(live, [beam_width * (i == best) for i in range(beam_width)])
        for branch in live:
            run.end(branch)

    await gather(subtree() for _ in range(n // beam_width))
    return await run.result()
