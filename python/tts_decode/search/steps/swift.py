"""Beam search whose survivors are drawn rather than ranked."""

from __future__ import annotations

from ...rewards.scorer import Scorer
from ...select import extract_answer, sample_top_k
from ..answers import Extract
from ..decisions import DecideBy
from ..result import SearchResult
from ..run import SearchRun
from ..strategy import strategy
from .beams import check_beams, share_out, truncate_finished


@strategy("beam search, survivors drawn by softmax of the scores")
async def swift(
    run: SearchRun,
    *,
    n: int = 16,
    scorer: Scorer,
    beam_width: int = 4,
    max_steps: int = 40,
    softmax_temperature: float = 0.01,
    decide_by: DecideBy = "max",
    agg_strategy: str = "last",
    extract: Extract = extract_answer,
) -> SearchResult:
    """`beam_search` with survivors drawn by softmax(score / temperature); lacks the fast tokenizer of video.

    Cong et al., "Can Test-Time Scaling Improve World Foundation Model?", arXiv 2503.24320: SWIFT's
    probability-based top-K pruning with beam search, made for video models; here the rule applies to any
    scored steps. The draw is without replacement (`select.sample_top_k`).

    Args:
        n, scorer, beam_width, max_steps, decide_by, agg_strategy, extract: as in `beam_search`. The paper
            keeps sqrt(n) beams, like n = 16 with beam_width = 4.
        softmax_temperature: of the draw. The default is the published code's, for scores that differ by
            hundredths. Near 0 the search is `beam_search`.

    Departures. The published code exponentiates the scores themselves and cannot draw K beams when fewer than
    K of the weights are above 0; the draw here has the same distribution without this limit. The paper's
    videos all have one length; here a finished beam becomes a candidate and frees its place, as in
    `beam_search`.
    """
    check_beams(n, beam_width)
    sample_top_k([], 1, softmax_temperature, run.rng)  # checks it
    run.aggregate_by(agg_strategy)
    run.decide_by(decide_by, extract)
    run.limit_steps(max_steps)
    first = len(run.candidates)
    live = run.fork(run.root, n)
    while (live := await run.advance(live, scorer)) and len(run.candidates) < first + n:
        kept = sample_top_k(run.aggregated(live), n // beam_width, softmax_temperature, run.rng)
        live = share_out(run, live, kept, n)
    truncate_finished(run, first, n, sort_completed=False)
    return await run.result()
