"""QAlign: a Markov chain over whole answers whose distribution is the model's, tilted by the reward."""

from __future__ import annotations

import random
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Literal

from ...core.checks import at_least
from ...core.running import gather
from ...rewards.scorer import Scorer
from ...select import acceptance, expected_gains, extract_answer, vote
from ..answers import Extract, answers_of
from ..result import Candidate, SearchResult
from ..run import SearchRun
from ..strategy import strategy

if TYPE_CHECKING:
    from ...core.interfaces import Branch


@strategy("Metropolis-Hastings: rewrite the answer from a random token on, accept by reward")
async def qalign(
    run: SearchRun,
    *,
    max_samples: int = 16,
    scorer: Scorer,
    beta: float = 0.1,
    burn_in: int = 0,
    parallel: int = 1,
    decide_by: Literal["max", "last", "weighted", "majority", "mbr"] = "majority",
    extract: Extract = extract_answer,
) -> SearchResult:
    """Resamples the answer from a random token on; a Metropolis-Hastings rule accepts or rejects it.

    Faria and Smith, "Sample, Don't Search: Rethinking Test-Time Alignment for Language Models", arXiv
    2504.03790; the proposal is QUEST's (Faria et al., arXiv 2406.00049). In the limit the states of a chain
    are samples of p(answer) exp(reward / beta), where p is the distribution of the root's sampling
    parameters. No log-probability is needed. A new answer shares the pages of the part that it keeps.

    Args:
        max_samples: answers sampled by all chains in total, a multiple of `parallel`.
        scorer: the reward of finished answers, of any range.
        beta: how far the reward tilts the model: near 0 only improvements are kept, at large values all.
        burn_in: states at the start of each chain that are not candidates.
        parallel: independent chains run concurrently, so that the engine has a batch; the paper runs one.
        decide_by: "majority" as in the paper, or another rule of `best_of_n`, over the states; "mbr" (minimum
            Bayes risk), if answers are free text: the state with the highest mean ROUGE-1 to all states.
        extract: the answer in a text, or None to abstain.

    The cut is uniform over the answer's tokens, its end token included; a longer new answer is accepted less
    easily, since the reverse move has more possible cuts (`select.acceptance`). Candidates are the chain's
    states; a state that stays counts each time. ROUGE-1 is over tokens, as in the published code
    (`select.expected_gains`); if an engine does not report their ids, over words.

    Departures. The published code clamps the log of the acceptance ratio to +-20; here it is exact. An engine
    must be able to cut between any two tokens.
    """
    at_least(1, max_samples=max_samples, parallel=parallel)
    at_least(0, burn_in=burn_in)
    if max_samples % parallel:
        raise ValueError(f"parallel: got {parallel}, expected a divisor of max_samples = {max_samples}")
    if burn_in >= max_samples // parallel:
        raise ValueError(
            f"burn_in: got {burn_in}, expected less than the {max_samples // parallel} states of a chain"
        )
    acceptance(0.0, 0.0, 1, 1, beta)  # checks it
    run.decide_by(decide_by, extract, "mbr")
    root = run.root

    async def completed(branch: Branch) -> float:
        """Returns the reward of the answer that the branch continues to."""
        del branch.scores[len(root.scores) :]
        await run.complete(branch)
        return (await run.score([branch], scorer))[0]

    async def chain(rng: random.Random) -> None:
        (state,) = run.fork(root)
        reward = await completed(state)
        if state.finish_reason == "budget" or state.length == root.length:
            return
        told = False
        for t in range(max_samples // parallel):
            if t > 0:
                (proposal,) = run.fork(state, at=root.length + rng.randrange(state.length - root.length))
                proposed = await completed(proposal)
                if proposal.finish_reason == "budget":  # it stays as an incomplete candidate
                    break
                lengths = state.length - root.length, proposal.length - root.length
                if rng.random() < acceptance(reward, proposed, *lengths, beta):
                    state, proposal, reward = proposal, state, proposed
                run.prune([proposal])
            if t >= burn_in:
                run.end(run.fork(state)[0], reward)
                told = True
        if told:
            run.prune([state])

    await gather(chain(random.Random(run.rng.getrandbits(64))) for _ in range(parallel))
    voters = run.candidates
    if decide_by != "mbr" or not voters:
        return await run.result()
    gains = expected_gains([_units(candidate) for candidate in voters])
    best = max(range(len(voters)), key=gains.__getitem__)
    return await run.result(voters[best], vote(await answers_of(voters, extract)))


def _units(candidate: Candidate) -> Sequence[Hashable]:
    """Returns the units that ROUGE-1 counts."""
    return candidate.text.split() if -1 in candidate.tokens else candidate.tokens
