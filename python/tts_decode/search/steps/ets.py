"""ETS: REBASE on the leaves that a cost model finds worth their KV cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tts_kernels.checks import number

from ...core.checks import at_least, check_choice
from ...extras import require
from ...rewards.scorer import Scorer
from ...select import ALLOCATIONS, cluster, ets_select, extract_answer, rebase_weights
from ..answers import Extract
from ..decisions import DecideBy
from ..hidden import hidden_states
from ..result import SearchResult
from ..run import SearchRun
from ..strategy import strategy
from ..tree import Node

if TYPE_CHECKING:
    from ...core.interfaces import Branch
    from ...core.step import Step

Embed = Callable[[Sequence["Step"]], "np.ndarray[Any, Any]"]
"""Embeddings [N, D] of N steps; only their directions matter."""


@strategy("REBASE on the leaves that a KV cost model keeps")
async def ets(
    run: SearchRun,
    *,
    n: int = 16,
    scorer: Scorer,
    max_steps: int = 25,
    softmax_temperature: float = 0.2,
    allocation: Literal["published", "exact"] = "published",
    lambda_b: float = 1.0,
    lambda_d: float = 1.5,
    node_cost: Literal["node", "token"] = "node",
    cluster_threshold: float = 0.2,
    embed: Embed | None = None,
    decide_by: DecideBy = "max",
    agg_strategy: str = "last",
    extract: Extract = extract_answer,
) -> SearchResult:
    """REBASE that first drops leaves which cost more KV than they are worth.

    Hooper et al., "ETS: Efficient Tree Search for Inference-Time Scaling", arXiv 2502.13575. The leaves kept
    are the exact optimum of the cost model in `select.cost_model`; REBASE then gives the survivors the full
    remaining width, so pruning lowers the number of distinct nodes, not of continuations. Defaults are those
    of its code for width 16 (it uses lambda_d = 1.4 and 1.45 for 64 and 256).

    Args:
        n, scorer, max_steps, softmax_temperature, decide_by, agg_strategy, extract: as in `rebase`.
        allocation: as in `rebase`; it determines both a leaf's outcome O_i, its share of the width, and the
            continuations of the leaves that stay. Use the same one when comparing the two searches.
        lambda_b: price of KV: weight of the kept leaves' share of the tree's cost.
        lambda_d: value of diversity: weight of the share of step clusters that they cover. With 0 no clusters
            are computed.
        node_cost: "node": every step costs the same, as in the published code; "token": a step costs its
            number of tokens, as in memory, and the prompt costs nothing, since every choice keeps it.
        cluster_threshold: cosine distance below which steps count as saying the same (average linkage). The
            paper's 0.05 is for its sentence encoder; with hidden states of the default model it leaves 0.95
            clusters per leaf, which makes every leaf worth keeping.
        embed: embeddings of the new steps; None uses the mean of the model's own last hidden states over each
            step. `sentence_embedder` is the published kind.

    Departures. Those of `rebase`. Objectives within 2e-6 are ties, broken towards more leaves. With lambda_b
    = 0 every leaf is kept and the search is REBASE; the published code achieves this with a reward of 1e-4
    per node. Clusters come from the model's hidden states by default; the paper runs a separate math sentence
    encoder. The paper decides by "weighted".
    """
    check_choice("allocation", allocation, [*ALLOCATIONS])
    check_choice("node_cost", node_cost, ("node", "token"))
    for name, value in (
        ("lambda_b", lambda_b),
        ("lambda_d", lambda_d),
        ("cluster_threshold", cluster_threshold),
    ):
        number(name, value, low=0)
    at_least(1, n=n)
    run.aggregate_by(agg_strategy)
    run.decide_by(decide_by, extract)
    run.limit_steps(max_steps)
    share_out = ALLOCATIONS[allocation]
    covers = lambda_b > 0 and lambda_d > 0  # otherwise the clusters would change nothing
    with hidden_states(run.root.decoder, covers and embed is None):
        live = run.fork(run.root, n)
        while live := await run.advance(live, scorer):
            width = len(live)  # n less the finished
            scores = run.aggregated(live)
            clusters = None
            if covers and width > 1:
                clusters = await step_clusters(run, live, embed, cluster_threshold)
            kept = ets_select(
                [count / width for count in share_out(width, rebase_weights(scores, softmax_temperature))],
                [node.parent for node in run.tree],
                [run.node(branch) for branch in live],
                [_cost(node, node_cost) for node in run.tree],
                clusters,
                lambda_b=lambda_b,
                lambda_d=lambda_d,
            )
            survivors = [i for i, keep in enumerate(kept) if keep]
            weights = rebase_weights([scores[i] for i in survivors], softmax_temperature)
            counts = dict(zip(survivors, share_out(width, weights), strict=True))
            live = run.expand(live, [counts.get(i, 0) for i in range(width)])
        return await run.result()


def _cost(node: Node, node_cost: str) -> float:
    if node_cost == "node":
        return 1.0
    return 0.0 if node.status == "prompt" else float(len(node.tokens))


async def step_clusters(
    run: SearchRun, branches: Sequence[Branch], embed: Embed | None, threshold: float
) -> list[int]:
    """Returns cluster labels of the branches' last steps; those from `embed` go into the journal."""
    steps = [branch.steps[-1] for branch in branches]
    if embed is None:
        return cluster(mean_hidden(steps), threshold)

    async def labels() -> list[float]:
        return [float(label) for label in cluster(embed(steps), threshold)]

    return [int(label) for label in await run.numbers(branches, labels)]


def mean_hidden(steps: Sequence[Step]) -> np.ndarray[Any, Any]:
    """Returns the mean of the model's last hidden states over each step's tokens, [N, hidden]."""
    return np.stack([step.hidden.numpy() for step in steps if step.hidden is not None])


def sentence_embedder(model: str = "math-similarity/Bert-MLM_arXiv-MP-class_zbMath") -> Embed:
    """Returns an `embed` for `ets` from a sentence-transformers model (default: the paper's).

    It embeds the texts of the steps.
    """
    require("sentence_transformers")
    from sentence_transformers import SentenceTransformer

    encoder = SentenceTransformer(model)
    return lambda steps: np.asarray(encoder.encode([step.text for step in steps], batch_size=64))
