"""NoThinking: reasoning models without their thinking, in parallel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from ...core.checks import at_least
from ...core.running import gather
from ...rewards.scorer import Scorer
from ...rewards.self_certainty import mean_certainty
from ...select import borda_weights, extract_answer
from ..answers import Extract, decide, eligible
from ..result import Candidate, SearchResult
from ..run import SearchRun
from ..strategy import strategy

if TYPE_CHECKING:
    from ...core.interfaces import Branch

THINKING = "<think>\nOkay, I think I have finished thinking.\n</think>\n\n"
"""The block in the format of the DeepSeek-R1 family, with the paper's sentence."""


@strategy("n answers after an empty thinking block")
async def no_thinking(
    run: SearchRun,
    *,
    n: int = 16,
    scorer: Scorer | None = None,
    power: float = 1.0,
    thinking: str = THINKING,
    decide_by: Literal["borda", "max", "last", "weighted", "majority"] = "borda",
    extract: Extract = extract_answer,
) -> SearchResult:
    """Samples `n` answers after an already closed thinking block; the best one or a vote wins.

    Ma et al., "Reasoning Models Can Be Effective Without Thinking", arXiv 2504.09858, section 2 and, for
    aggregation, section 4; self-certainty and its Borda vote are those of Kang et al., arXiv 2502.18581.

    Args:
        n: number of samples.
        scorer: scores finished samples: a verifier, or a measure of confidence. None: the self-certainty of
            the tokens after the block; text engines do not report it: pass `mean_logprob()`.
        power: exponent of the Borda vote; 0 makes it a majority vote.
        thinking: the block, forced once; all samples share its KV. Leave the opening tag out if the chat
            template writes it.
        decide_by: "borda": a vote in which the k-th best score of n has weight (n - k + 1) ** power; "max",
            for verifiers, "last", "weighted" and "majority" as in `best_of_n`.
        extract: the answer in a sample's text, or None to abstain.

    A sample's self-certainty is the mean over its tokens of D(uniform || model), the KL divergence of the
    model's distribution from the uniform one over the vocabulary (`Step.self_certainties`). The forced block
    is part of the candidates' texts and of `max_tokens`.

    Departures. None.
    """
    at_least(1, n=n)
    run.refuse_constraint("no_thinking", "forces its thinking block into answers")
    run.decide_by(decide_by, extract, "borda")
    borda_weights([], power)
    (stem,) = run.fork(run.root)
    await run.extend(stem, thinking)
    known = len(stem.steps)
    sampling = {} if scorer is not None else {"self_certainty": True}

    async def confidence(branches: Sequence[Branch]) -> list[float]:
        return [mean_certainty(branch.steps[known:]) for branch in branches]

    async def finished(branch: Branch) -> Candidate:
        await run.complete(branch, **sampling)
        await run.score([branch], scorer or confidence)
        return run.end(branch)

    branches = run.fork(stem, n)
    run.prune([stem])
    samples = await gather(finished(branch) for branch in branches)
    if decide_by != "borda":
        return await run.result()
    voters = eligible(samples)
    return await decide(run, voters, extract, borda_weights([c.score or 0.0 for c in voters], power))
