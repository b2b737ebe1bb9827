"""Reward-guided tree search: expands and rolls out the most promising leaf of the whole tree."""

from __future__ import annotations

from collections.abc import Sequence

from tts_kernels.checks import number

from ...core.checks import at_least
from ...core.running import gather
from ...rewards.scorer import Scorer
from ...select import extract_answer, uct, vote
from ..answers import Extract, answers_of, finish
from ..decisions import DecideBy
from ..result import Candidate, SearchResult
from ..run import SearchRun
from ..strategy import strategy
from .tree_node import TreeNode, add_children, leaves_of, release


@strategy("expands the best leaf of the whole tree and rolls its children out to answers")
async def reward_guided_tree_search(
    run: SearchRun,
    *,
    max_samples: int = 16,
    scorer: Scorer,
    num_children: int = 4,
    pre_expansion: int = 8,
    max_steps: int = 40,
    exploration: float = 1.0,
    consistency_weight: float = 0.5,
    decide_by: DecideBy = "max",
    extract: Extract = extract_answer,
) -> SearchResult:
    """Rolls out the children of the leaf with the highest UCT; lacks the trained models and the calculator.

    Jiang et al., "Enhancing LLM Reasoning with Reward-guided Tree Search", arXiv 2411.11694 (STILL-1), the
    part at inference time: a policy model navigates a tree that it expands as it goes, a reward model guides
    it. Each iteration chooses among all leaves at once (not level by level from the root), expands the chosen
    one by `num_children` steps, samples from each new child an answer to its end, and backs its reward up.

    Args:
        max_samples: total number of answers.
        scorer: the reward model, in [0, 1].
        num_children: children of an expanded leaf; equal steps become one child.
        pre_expansion: children of the root, for a broad start.
        max_steps: maximum number of steps on a path.
        exploration: weight of the bonus in UCT.
        consistency_weight: weight of agreement in the reward of an answer: the share of all answers so far
            with the same conclusion. The rest is the scorer's weight. 0: the scorer alone.
        decide_by: "max": the answer with the highest reward, including agreement, when the search ends; the
            other rules as in `best_of_n`, by the scorer alone.
        extract: the answer in a text; a text without one (None) agrees with none.

    Departures: the paper trains policy and reward model for this search; here they are given; its calculator
    for equations is left out. The defaults of `exploration`, `consistency_weight` and `pre_expansion` are
    ours.
    """
    at_least(
        1,
        max_samples=max_samples,
        num_children=num_children,
        pre_expansion=pre_expansion,
        max_steps=max_steps,
    )
    number("consistency_weight", consistency_weight, low=0, high=1)
    run.decide_by(decide_by, extract)
    answers: list[Candidate] = []

    def reward(score: float, conclusion: str | None, conclusions: Sequence[str | None]) -> float:
        share = 0.0 if conclusion is None else conclusions.count(conclusion) / len(conclusions)
        return (1 - consistency_weight) * score + consistency_weight * share

    def bound(leaf: TreeNode) -> float:
        above = leaf.visits if leaf.parent is None else leaf.parent.visits
        return uct([leaf.value], [leaf.visits], above, exploration)[0]

    async def simulate(children: list[TreeNode]) -> None:
        rollouts = {child: run.fork(child.branch)[0] for child in children if child.branch is not None}
        made = await gather(finish(run, branch, scorer) for branch in rollouts.values())
        ended = dict(zip(rollouts, made, strict=True))
        before = len(answers)
        answers.extend(child.candidate or ended[child] for child in children)
        conclusions = await answers_of(answers, extract)
        for i, child in enumerate(children, start=before):
            child.back_up(reward(answers[i].score or 0.0, conclusions[i], conclusions[: i + 1]))

    root = TreeNode(run.fork(run.root)[0])
    while len(answers) < max_samples and not run.over and (leaves := leaves_of(root)):
        leaf = max(leaves, key=bound)
        assert leaf.branch is not None  # a leaf keeps its branch until it is expanded
        branches = run.fork(leaf.branch, pre_expansion if leaf is root else num_children)
        await run.step(branches)
        await add_children(run, scorer, [(leaf, branches)], max_steps)
        if not run.over:
            await simulate(leaf.children[: max_samples - len(answers)])
    if not run.over:
        release(run, leaves_of(root))
    if decide_by != "max" or not answers:
        return await run.result()
    conclusions = await answers_of(answers, extract)
    rewards = [
        reward(answer.score or 0.0, conclusion, conclusions)
        for answer, conclusion in zip(answers, conclusions, strict=True)
    ]
    best = max(range(len(answers)), key=lambda i: (answers[i].complete, rewards[i]))
    return await run.result(answers[best], vote(conclusions))
