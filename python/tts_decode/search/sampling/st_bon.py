"""Self-truncation best-of-n: the samples' early consistency picks one, the others are cut off."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from tts_kernels.checks import number

from ...core.checks import at_least, check_choice
from ...select import hidden_distances, most_central, ngram_distances
from ..hidden import hidden_states
from ..result import SearchResult
from ..run import SearchRun
from ..strategy import strategy

if TYPE_CHECKING:
    from ...core.interfaces import Branch


@strategy("n answers begun, the most consistent one finished")
async def st_bon(
    run: SearchRun,
    *,
    n: int = 10,
    tau_coeff: float = 1.0,
    consistency: Literal["hidden", "string"] = "hidden",
) -> SearchResult:
    """Begins `n` samples, then goes on only with the one whose beginning agrees best with the others.

    Wang et al., "Sampling-Efficient Test-Time Scaling: Self-Estimating the Best-of-N Sampling in Early
    Decoding", arXiv 2503.01422, section 3 (its code: Alsace08/ST-BoN).

    n            number of samples.
    tau_coeff    length of the window in which samples are compared, as a multiple of c; at least a token. c
                 is the number of tokens after which all samples differ or the first one ends.
    consistency  what is compared. "hidden": the mean of the model's last hidden states over a sample so far;
                 "string": the sample's pairs of neighbouring words, which any engine has.

    At each token of the window the sample with the smallest mean distance to the others gets a vote; most
    votes win (ties: the lower fork). The losers are released before the winner's next token, so `n` samples
    are held for c + tau tokens only. The winner goes on in its own pages.

    Departures. The paper's "chain of embedding" compares how a sample's state moves through all layers; an
    engine step offers the last layer's alone, so hidden states themselves are compared, by squared distance.
    The code prefills the winner again; here nothing is computed twice. Up to the end of the window each token
    is a step and a node.
    """
    at_least(1, n=n)
    number("tau_coeff", tau_coeff, low=0)
    check_choice("consistency", consistency, ("hidden", "string"))
    branches = run.fork(run.root, n)
    winner = branches[0]
    with hidden_states(run.root.decoder, consistency == "hidden"):
        if n > 1:
            winner = branches[await _winner(run, branches, tau_coeff, consistency)]
    run.prune([branch for branch in branches if branch is not winner])
    return run.result(run.end(await run.complete(winner)))


async def _winner(
    run: SearchRun, branches: Sequence[Branch], tau_coeff: float, consistency: Literal["hidden", "string"]
) -> int:
    """Steps the branches to the end of the window; index of the one that most of its tokens vote for."""
    start = branches[0].length
    sums: list[np.ndarray] = [np.zeros(1)] * len(branches)  # of hidden states, [hidden] once there are any

    async def extend() -> None:
        for i, step in enumerate(await run.step(branches, max_step_tokens=1)):
            if step.hidden is not None:
                sums[i] = sums[i] + step.hidden.numpy()

    await extend()
    while not _parted(branches, start):
        await extend()
    c = max(branch.length for branch in branches) - start
    votes = [0] * len(branches)
    for _ in range(max(1, int(tau_coeff * c))):
        await extend()
        if run.over:  # some samples may have got no token at all
            break
        if consistency == "hidden":
            lengths = [branch.length - start for branch in branches]
            distances = hidden_distances([s / length for s, length in zip(sums, lengths, strict=True)])
        else:
            distances = ngram_distances([branch.text.split() for branch in branches])
        votes[most_central(distances)] += 1
    return votes.index(max(votes))


def _parted(branches: Sequence[Branch], start: int) -> bool:
    """Whether all went different ways, or one has ended."""
    ways = {(*branch.tokens[start:], branch.text) for branch in branches}  # ids may be unknown, -1
    return len(ways) == len(branches) or any(branch.finished for branch in branches)
