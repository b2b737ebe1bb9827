"""Monte Carlo tree search over the steps of an answer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from ...core.checks import at_least, check_choice
from ...core.running import gather
from ...rewards.scorer import Scorer
from ...select import extract_answer, puct, rebase_weights, uct
from ..answers import Extract, finish
from ..result import SearchResult
from ..run import SearchRun
from ..strategy import strategy
from .tree_node import TreeNode, add_children, conclude, grow


@strategy("Monte Carlo tree search over steps, guided by their scores")
async def mcts(
    run: SearchRun,
    *,
    num_simulations: int = 16,
    scorer: Scorer,
    num_children: int = 4,
    max_steps: int = 40,
    selection: Literal["puct", "uct"] = "puct",
    simulate: Literal["descend", "rollout", "value"] = "descend",
    exploration: float = 1.0,
    pb_c_base: float = 19652.0,
    pb_c_init: float = 1.25,
    parallel: int = 1,
    decide_by: Literal["max", "last", "weighted", "majority", "visits"] = "max",
    agg_strategy: str = "last",
    extract: Extract = extract_answer,
) -> SearchResult:
    """Descends from the root to the most promising leaf, which gets `num_children` next steps.

    Each such descent is a simulation. The defaults make the search of openr ("VanilaMCTS": Wang et al.,
    "OpenR: An Open Source Framework for Advanced Reasoning with Large Language Models", arXiv 2410.09671),
    whose rule is AlphaZero's; selection="uct" makes the search of RAP (Hao et al., "Reasoning with Language
    Model is Planning with World Model", arXiv 2305.14992, algorithm 1) on the scores of steps.

    Args:
        num_simulations: total number of simulations.
        scorer: values of partial answers, in [0, 1], the range that the constants of the bounds are chosen
            for.
        num_children: steps sampled when a leaf is expanded; equal steps become one child.
        max_steps: maximum number of steps on a path, which then ends as an incomplete candidate.
        selection: "puct": value + prior * c, where the prior is the step's probability per token, normalised
            over its siblings; or "uct".
        simulate: "descend": a simulation expands leaf after leaf down to an answer, which stays in the tree;
            the answer's score is the value. "rollout": it expands one leaf; the value comes from an answer
            sampled from the best new child, outside the tree. "value": it expands one leaf; the value is the
            new child's score.
        exploration: weight of UCT's bonus, `w_exp` of llm-reasoners.
        pb_c_base, pb_c_init: PUCT's constants.
        parallel: simulations that share forwards. More than 1 changes the search: each knows the paths of the
            others, but not yet their values.
        decide_by: "max", "last", "weighted" or "majority" among the answers, as in `best_of_n`; "visits": the
            one at the end of the most visited path.
        agg_strategy: how an answer's score is computed from its steps' scores.
        extract: the answer in a text, or None to abstain.

    A node's branch is released when it is expanded: its KV lives on in its children. Departures: the value of
    a path is the score of its end; RAP sums rewards over the steps; the prior of a step is the probability of
    its words, not corrected for how often they were drawn.
    """
    at_least(
        1, num_simulations=num_simulations, num_children=num_children, max_steps=max_steps, parallel=parallel
    )
    check_choice("selection", selection, ("puct", "uct"))
    check_choice("simulate", simulate, ("descend", "rollout", "value"))
    run.aggregate_by(agg_strategy)
    run.decide_by(decide_by, extract, "visits")

    def select(node: TreeNode) -> int:
        values = [child.value for child in node.children]
        visits = [child.visits + child.pending for child in node.children]
        others = node.visits + node.pending - 1
        if selection == "uct":
            bounds = uct(values, visits, others, exploration)
        else:
            priors = _priors([child.logprob for child in node.children])
            bounds = puct(values, priors, visits, others, pb_c_base=pb_c_base, pb_c_init=pb_c_init)
        return max(range(len(bounds)), key=bounds.__getitem__)

    async def expand(nodes: Sequence[TreeNode]) -> None:
        families = [(node, run.fork(node.branch, num_children)) for node in nodes if node.branch is not None]
        await run.step([branch for _, branches in families for branch in branches])
        await add_children(run, scorer, families, max_steps)

    async def roll_out(leaf: TreeNode) -> float:
        if leaf.branch is None:
            return leaf.score
        return (await finish(run, run.fork(leaf.branch)[0], scorer)).scores[-1]

    async def values_of(leaves: Sequence[TreeNode]) -> list[float]:
        if simulate == "rollout":
            return await gather(roll_out(leaf) for leaf in leaves)
        return [leaf.score for leaf in leaves]

    root = TreeNode(run.fork(run.root)[0])
    ends_below = None if simulate == "descend" else values_of
    await grow(run, root, num_simulations, select, expand, parallel=parallel, simulate=ends_below)
    return await conclude(run, root, scorer, by_visits=decide_by == "visits")


def _priors(logprobs: Sequence[float]) -> list[float]:
    """Returns weights in proportion to exp(logprob); equal ones if any is unknown (NaN)."""
    known = all(math.isfinite(value) for value in logprobs)
    return rebase_weights(logprobs if known else [0.0] * len(logprobs), 1.0)
