"""Beam search whose scores look k steps ahead."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...core.checks import at_least
from ...core.running import gather
from ...rewards.scorer import Scorer
from ...select import extract_answer, top_k
from ..answers import Extract
from ..decisions import DecideBy
from ..result import SearchResult
from ..run import SearchRun
from ..strategy import strategy
from .beams import check_beams, share_out, truncate_finished

if TYPE_CHECKING:
    from ...core.interfaces import Branch


@strategy("beam search that scores each step after k more greedy ones")
async def lookahead(
    run: SearchRun,
    *,
    n: int = 16,
    scorer: Scorer,
    beam_width: int = 4,
    k: int = 1,
    max_steps: int = 40,
    sort_completed: bool = False,
    decide_by: DecideBy = "max",
    agg_strategy: str = "last",
    extract: Extract = extract_answer,
) -> SearchResult:
    """Beam search that scores a step by where `k` more steps at temperature 0 lead.

    Snell et al., "Scaling LLM Test-Time Compute Optimally", arXiv 2408.03314, section 5.2 (they run k = 1
    and 3); also `lookahead` of Hugging Face's search-and-learn. With `k` = 0 it is `beam_search`.

    Args:
        n, scorer, beam_width, max_steps, sort_completed, decide_by, agg_strategy, extract: as in
            `beam_search`.
        k: steps of a rollout, which stops early if it finishes its answer. `n` beams take up to n (k + 1)
            steps at a time.

    A rollout is a fork of its beam: it shares the beam's pages and frees its own once it is scored. The
    result's tree keeps its nodes as pruned ones below the step that was scored; both carry the score.

    Departures. As in `beam_search`, a finished beam becomes a candidate and frees its place.
    """
    check_beams(n, beam_width)
    at_least(1, max_steps=max_steps)
    at_least(0, k=k)
    run.aggregate_by(agg_strategy)
    run.decide_by(decide_by, extract)

    async def roll_out(branch: Branch) -> Branch:
        if branch.finished or k == 0:
            return branch
        ahead = run.fork(branch)[0]
        for _ in range(k):
            if not ahead.finished:
                await run.step([ahead], temperature=0.0)
        return ahead

    first = len(run.candidates)
    live = run.fork(run.root, n)
    for _ in range(max_steps):
        await run.step(live)
        ahead = await gather(roll_out(branch) for branch in live)
        scores = await run.score(ahead, scorer)
        for branch, rollout, score in zip(live, ahead, scores, strict=True):
            if rollout is not branch:
                branch.scores.append(score)
                run.tree[run.node(branch)].score = score
                run.prune([rollout])
            if branch.finished:
                run.end(branch)
        live = [branch for branch in live if not branch.finished]
        if not live or run.over or (len(run.candidates) >= first + n and not sort_completed):
            break
        kept = top_k(run.aggregated(live), n // beam_width)
        live = share_out(run, live, kept, n)
    truncate_finished(run, first, n, sort_completed)
    return await run.result()
