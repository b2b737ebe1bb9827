"""NoThinking: reasoning models without their thinking, in parallel."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from ...core.checks import at_least
from ...core.running import gather
from ...rewards.scorer import Scorer
from ...select import borda_weights, extract_answer
from ..answers import Extract, decide, eligible, finish
from ..result import SearchResult
from ..run import SearchRun
from ..strategy import strategy

if TYPE_CHECKING:
    from ...core.interfaces import Branch

THINKING = "<think>\nOkay, I think I have finished thinking.\n</think>\n\n"
"""The block as models of the DeepSeek-R1 family write it, with the paper's sentence in it."""


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
    """`n` samples in parallel after a thinking block that is already closed; the best one or a vote wins.

    Ma et al., "Reasoning Models Can Be Effective Without Thinking", arXiv 2504.09858, section 2 and, for
    aggregation, section 4.

    n          number of samples.
    scorer     scores finished samples: a verifier, or a measure of confidence. None: the mean log-probability
               of the tokens after the block.
    power      exponent of the Borda vote; 0 makes it a majority vote.
    thinking   the block, forced once; all samples share its KV. Leave the opening tag out if the chat
               template writes it.
    decide_by  "borda": a vote in which the k-th best score of n weighs (n - k + 1) ** power; "max", for
               verifiers, "last", "weighted" and "majority" as in `best_of_n`.
    extract    the answer in a sample's text, or None to abstain.

    The forced block is part of the candidates' texts and of `max_tokens`.

    Departures. The paper's confidence is self-certainty (Kang et al., arXiv 2502.18581), which needs the
    probabilities of the whole vocabulary at every token; steps keep those of the tokens drawn.
    """
    at_least(1, n=n)
    run.decide_by(decide_by, extract, "borda")
    borda_weights([], power)
    (stem,) = run.fork(run.root)
    await run.extend(stem, thinking)
    forced = len(stem.logprobs)

    async def confidence(branches: Sequence[Branch]) -> list[float]:
        sampled = [branch.logprobs[forced:] for branch in branches]
        return [math.fsum(logprobs) / max(len(logprobs), 1) for logprobs in sampled]

    branches = run.fork(stem, n)
    run.prune([stem])
    samples = await gather(finish(run, branch, scorer or confidence) for branch in branches)
    if decide_by != "borda":
        return run.result()
    voters = eligible(samples)
    return decide(run, voters, extract, borda_weights([c.score or 0.0 for c in voters], power))
