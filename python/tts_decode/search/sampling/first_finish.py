"""First finish search: the sample that ends first is the answer."""

from __future__ import annotations

from ...core.checks import at_least
from ...core.running import first_of
from ..result import SearchResult
from ..run import SearchRun
from ..strategy import strategy


@strategy("n answers in parallel, the first one to end wins")
async def first_finish(run: SearchRun, *, n: int = 4) -> SearchResult:
    """Draws `n` independent samples in parallel; the first to end wins, and the others are cancelled.

    Agarwal, Sengupta, Chakraborty, "First Finish Search: Efficient Test-Time Scaling in Large Language
    Models", arXiv 2505.18149: the shorter traces of a reasoning model are more often right.

    Args:
        n: number of samples.

    If several samples end at the same token, the lowest fork wins. The others free their pages before the
    model's next forward; their tokens stay in the tree as pruned nodes.

    Departures. None from the paper's synchronous variant, in which all samples go through the same forwards.
    A sample cut by `max_tokens` counts as ended, since no other one can then be shorter.
    """
    at_least(1, n=n)
    branches = run.fork(run.root, n)
    first = await first_of(run.complete(branch) for branch in branches)
    run.prune([branch for branch in branches if branch is not first])
    return await run.result(run.end(first))
