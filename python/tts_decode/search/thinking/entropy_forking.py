"""ETMR: rollouts that fork where the model was least sure, and a vote."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...core.checks import at_least
from ...core.running import gather
from ...rewards.scorer import Scorer
from ...select import extract_answer, fork_points
from ..answers import Extract, concluded, finish
from ..decisions import DecideBy
from ..result import Candidate, SearchResult
from ..run import SearchRun
from ..strategy import strategy

if TYPE_CHECKING:
    from ...core.interfaces import Branch


@strategy("whole answers, forked again at their tokens of highest entropy, and a vote")
async def entropy_forking(
    run: SearchRun,
    *,
    n: int = 12,
    scorer: Scorer | None = None,
    num_forks: int = 2,
    num_branches: int = 2,
    decide_by: DecideBy = "max",
    extract: Extract = extract_answer,
) -> SearchResult:
    """Forks each of `n` answers where its entropy was highest; all vote; lacks ETTRL's training.

    The total number of answers is n * (1 + num_forks * num_branches).

    Liu et al., "ETTRL: Balancing Exploration and Exploitation in LLM Test-Time Reinforcement Learning Via
    Entropy Mechanism", arXiv 2508.11356, Entropy-fork Tree Majority Rollout. Defaults are its experiments':
    60 answers.

    Args:
        n: answers sampled from the prompt (the paper's M trees).
        num_forks: fork points of each answer (N): its tokens of highest entropy, which are drawn again.
        num_branches: forks at each point (B).
        scorer, extract: which answer wins: the best-scored one, or without a scorer the majority of what
            `extract` reads from each.
        decide_by: as in `best_of_n`, where there is a scorer.

    A fork shares the pages of all tokens before it. If fork points are spread evenly, the rollouts cost (1 +
    BN/2) / (1 + BN) of the same number of independent ones; `rollout_share` returns their actual share.
    Without entropies from the engine there are no forks.

    Departures: the weights do not change (the paper trains on these votes); fork points may be anywhere in an
    answer.
    """
    at_least(1, n=n, num_branches=num_branches)
    at_least(0, num_forks=num_forks)
    run.decide_by(decide_by, extract)
    begin = run.root.length

    async def tree(branch: Branch) -> list[Candidate]:
        await run.complete(branch)
        entropies = branch.entropies[begin - branch.prompt_length :]
        points = [] if run.over else fork_points(entropies, num_forks)
        forks = [fork for i in points for fork in run.fork(branch, num_branches, at=begin + i)]
        answer = await finish(run, branch, scorer)
        return [answer, *await gather(finish(run, fork, scorer) for fork in forks)]

    trees = await gather(tree(branch) for branch in run.fork(run.root, n))
    return await concluded(run, scorer, extract, [answer for answers in trees for answer in answers])


def rollout_share(result: SearchResult) -> float:
    """Returns the tokens that a search sampled, as a share of its candidates' tokens: 1 if it shared none.

    Forced tokens count for the candidates, so use it for searches that force none.
    """
    tokens = sum(len(candidate.tokens) for candidate in result.candidates)
    return result.stats.generated_tokens / tokens if tokens else 1.0
