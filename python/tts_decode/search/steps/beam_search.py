"""Step-level beam search against a scorer."""

from __future__ import annotations

from ...rewards.scorer import Scorer
from ...select import extract_answer, top_k
from ..answers import Extract
from ..decisions import DecideBy
from ..result import SearchResult
from ..run import SearchRun
from ..strategy import strategy
from .beams import check_beams, share_out, truncate_finished


@strategy("n beams, the best n/beam_width go on at each step")
async def beam_search(
    run: SearchRun,
    *,
    n: int = 16,
    scorer: Scorer,
    beam_width: int = 4,
    max_steps: int = 40,
    sort_completed: bool = False,
    decide_by: DecideBy = "max",
    agg_strategy: str = "last",
    extract: Extract = extract_answer,
) -> SearchResult:
    """Steps `n` beams; the best `n // beam_width` continue, with `beam_width` continuations each.

    Snell et al., "Scaling LLM Test-Time Compute Optimally", arXiv 2408.03314, section 5.2 and its figure 2.

    Args:
        n: beams alive at a time.
        scorer: scores every step.
        beam_width: continuations of each kept beam, a divisor of `n`: the paper's M, as in Hugging Face's
            search-and-learn. In its_hub, vLLM, SGLang and `generate(num_beams=)` the term means the number of
            beams kept.
        max_steps: steps before the search ends with what it has.
        sort_completed: which finished beams are candidates, as in search-and-learn: False: the `n` that
            finished first, which end the search; True: the search continues until no beam is left, and the
            `n` best-scored ones are.
        decide_by: which candidate is the answer: "max", the best-scored one; "last", the one with the best
            last step; "weighted" or "majority", a vote of answers. See `search.decisions`.
        agg_strategy: how one score is computed from a beam's step scores: a name of `select.aggregation`.
        extract: the answer in a text, or None to abstain.

    A finished beam leaves the search as a candidate and frees its place. The kept beams always share `n`
    continuations, even if they are fewer than `n // beam_width`. An unfinished beam wins only if none is
    finished. The paper's final rule is decide_by="weighted"; search-and-learn reports "max", "weighted" and
    "majority". Departure: search-and-learn repeats finished beams if they are fewer than `n`, and lets the
    beams of the last step run to their end.
    """
    check_beams(n, beam_width)
    run.aggregate_by(agg_strategy)
    run.decide_by(decide_by, extract)
    run.limit_steps(max_steps)
    first = len(run.candidates)
    live = run.fork(run.root, n)
    while live := await run.advance(live, scorer):
        if len(run.candidates) >= first + n and not sort_completed:
            break
        kept = top_k(run.aggregated(live), n // beam_width)
        live = share_out(run, live, kept, n)
    truncate_finished(run, first, n, sort_completed)
    return await run.result()
