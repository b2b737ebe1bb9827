"""Knockout tournament: answers meet in pairs, and the winner of the last match is the answer."""

from __future__ import annotations

from ...core.checks import at_least
from ...core.running import gather
from ...select import bracket, match_winner
from ..answers import choose, eligible, sample
from ..result import SearchResult
from ..run import SearchRun
from ..strategy import strategy
from .judging import COMPARE, preferences


@strategy("n answers in a knockout tournament of pairwise comparisons")
async def knockout(
    run: SearchRun, *, n: int = 16, num_comparisons: int = 2, compare_prompt: str = COMPARE
) -> SearchResult:
    """Pairs `n` independent samples round by round; the majority of comparisons wins a match.

    Chen et al., "A Simple and Provable Scaling Law for the Test-Time Compute of Large Language Models", arXiv
    2411.19477, section 2: if the model answers correctly with p_gen > 0 and compares correctly with p_comp >
    1/2, the failure probability is at most (1 - p_gen)^n + ceil(log2 n) exp(-2 k (p_comp - 1/2)^2) with k
    comparisons per match.

    Args:
        n: number of samples.
        num_comparisons: comparisons per match, k. Half of them swap the two answers, as in the authors' code.
        compare_prompt: with the fields {question}, {first} and {second}; its last "A" or "B" counts.

    The search calls the model at most n + k (n - 1) times. All matches of a round run together. If the number
    is odd, the last answer advances without a match and plays first in the next round. Equal texts need no
    comparison. A candidate's score is the number of matches that it won.

    Departures. A reply without a verdict counts for neither; the run's generator decides draws.
    """
    at_least(1, n=n, num_comparisons=num_comparisons)
    pool = eligible(await sample(run, n))
    survivors, wins = list(range(len(pool))), [0] * len(pool)
    while len(survivors) > 1 and not run.over:
        pairs, survivors = bracket(survivors)  # those without a match come first, to play the next one
        played = [pair for pair in pairs if pool[pair[0]].text != pool[pair[1]].text]
        preferred = await gather(
            preferences(run, pool[i], pool[j], num_comparisons, compare_prompt) for i, j in played
        )
        results = dict(zip(played, preferred, strict=True))
        winners = [
            match_winner(pair, results[pair], run.rng) if pair in results else pair[0] for pair in pairs
        ]
        for winner in winners:
            wins[winner] += 1
        survivors += winners
    won = {pool[i].text: float(wins[i]) for i in sorted(range(len(pool)), key=wins.__getitem__)}
    return await choose(run, pool[survivors[0]], won)
