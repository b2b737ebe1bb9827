"""Self-truncation best-of-n: early consistency picks one sample, and the others are cut off."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from tts_kernels.checks import number

from ...core.checks import at_least, check_choice
from ...select import chain_of_embedding, most_central, ngram_distances, squared_differences
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
    """Begins `n` samples, then continues only the one whose beginning agrees best with the others.

    Wang et al., "Sampling-Efficient Test-Time Scaling: Self-Estimating the Best-of-N Sampling in Early
    Decoding", arXiv 2503.01422, section 3 (its code: Alsace08/ST-BoN).

    Args:
        n: number of samples.
        tau_coeff: length of the window in which samples are compared, as a multiple of c; at least one token.
            c is the number of tokens after which all samples differ or the first one ends.
        consistency: what is compared. "hidden": how a sample moves through all layers of the model
            (`select.chain_of_embedding`), by the means of the hidden states that its tokens were drawn from.
            "string": the sample's pairs of neighbouring words, which any engine has.

    At each token of the window the sample with the smallest mean squared distance to the others gets a vote;
    most votes win (ties: the lower fork). The losers are released before the winner's next token, so `n`
    samples are held for c + tau tokens only. The winner continues in its own pages. "hidden" keeps a mean of
    8 * (layers + 1) * hidden bytes per sample (0.14 MB for SmolLM2-135M) until then.

    Departures. The code prefills the winner again; here only the prompt's last token is computed twice. A
    sample that has ended keeps its mean; the code continues with padding tokens. Up to the end of the window
    each token is a step and a node.
    """
    at_least(1, n=n)
    number("tau_coeff", tau_coeff, low=0)
    check_choice("consistency", consistency, ("hidden", "string"))
    branches = run.fork(run.root, n)
    winner = branches[0]
    if n > 1:
        winner = branches[await _winner(run, branches, tau_coeff, consistency)]
    run.prune([branch for branch in branches if branch is not winner])
    return await run.result(run.end(await run.complete(winner)))


async def _winner(
    run: SearchRun, branches: Sequence[Branch], tau_coeff: float, consistency: Literal["hidden", "string"]
) -> int:
    """Steps the branches to the end of the window; returns the index of the one with most votes."""
    start = branches[0].length
    paths = await _Paths.begin(run, branches) if consistency == "hidden" else None
    votes = [0] * len(branches)
    tokens, end = 0, 0  # the window's end; 0 until it begins
    while not end or tokens < end:
        if paths is not None and tokens:
            await paths.extend()
        await run.step(branches, max_step_tokens=1)
        tokens += 1
        if run.over:  # some samples may have got no token at all
            break
        if end:
            distances = (
                ngram_distances([branch.text.split() for branch in branches])
                if paths is None
                else squared_differences(chain_of_embedding(paths.means()))
            )
            votes[most_central(distances)] += 1
        elif _parted(branches, start):
            end = tokens + max(1, int(tau_coeff * tokens))
        if all(branch.finished for branch in branches):
            break
    return votes.index(max(votes))


class _Paths:
    """For each sample, the sum of the hidden states [layers + 1, hidden] that its tokens were drawn from.

    The sum includes the prompt's last state.
    """

    def __init__(self, run: SearchRun, branches: Sequence[Branch], first: np.ndarray) -> None:
        self._run, self._branches = run, branches
        self._sums = [first for _ in branches]
        self._counts = [1] * len(branches)

    @classmethod
    async def begin(cls, run: SearchRun, branches: Sequence[Branch]) -> _Paths:
        (first,) = await run.layer_states(branches[:1])
        return cls(run, branches, first.double().numpy())

    async def extend(self) -> None:
        """Adds the newest token of each continuing sample."""
        going = [i for i, branch in enumerate(self._branches) if not branch.finished]
        states = await self._run.layer_states([self._branches[i] for i in going])
        for i, state in zip(going, states, strict=True):
            self._sums[i] = self._sums[i] + state.double().numpy()
            self._counts[i] += 1

    def means(self) -> list[np.ndarray]:
        return [total / count for total, count in zip(self._sums, self._counts, strict=True)]


def _parted(branches: Sequence[Branch], start: int) -> bool:
    """Whether all branches differ, or one has ended."""
    ways = {(*branch.tokens[start:], branch.text) for branch in branches}  # ids may be unknown, -1
    return len(ways) == len(branches) or any(branch.finished for branch in branches)
