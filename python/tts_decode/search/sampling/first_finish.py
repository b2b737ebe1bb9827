"""First finish search: the sample that ends first is the answer."""

from __future__ import annotations

from ...core.running import first_of
from ..result import SearchResult
from ..run import SearchRun, at_least
from ..strategy import strategy


@strategy("n answers in parallel, the first one to end wins")
async def first_finish(run: SearchRun, *, n: int = 4) -> SearchResult:
    """`n` independent samples in parallel; returns as soon as one ends and cancels the others.

    Agarwal, Sengupta, Chakraborty, "First Finish Search: Efficient Test-Time Scaling in Large Language
    Models", arXiv 2505.18149: of a reasoning model's traces the shorter ones are more often right.

    n  number of samples.

    Of samples that end at the same token the first fork wins. The others' pages are back before the model's
    next forward; their tokens so far stay in the tree as pruned nodes.

    Departures. None from its synchronous variant, in which all samples go through the same forwards. An end
    by `max_tokens` counts as one, since no other sample could be shorter then.
    """
    at_least(1, n=n)
    branches = run.fork(run.root, n)
    first = await first_of(run.complete(branch) for branch in branches)
    run.prune([branch for branch in branches if branch is not first])
    return run.result(run.end(first))
