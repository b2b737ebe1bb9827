"""Grows a tree of a world as REBASE or ETS does, by the rules of `tts_decode.select`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from tts_decode.select import cluster, ets_select, rebase_weights, retained_nodes, vote, walk_ceilings

from benches.ets_claims.worlds import RIGHT, Nodes, World

LAMBDA_D = {16: 1.5, 64: 1.4, 256: 1.45}  # width -> lambda_d of the published settings
MAX_STEPS = 25


@dataclass(frozen=True)
class Policy:
    """REBASE where `lambda_b` is 0. threshold: cosine distance within a cluster of steps."""

    lambda_b: float = 0.0
    lambda_d: float = 1.5
    node_cost: Literal["node", "token"] = "node"
    threshold: float = 0.2


class Stage(NamedTuple):
    """One step of a search. steps: its nodes, by branch. live: those that did not finish; empty at the end.
    counts: continuations of each of them; 0 is pruned. clusters: how many the live ones form; 0 if none were
    made."""

    steps: list[int]
    live: list[int]
    counts: list[int]
    clusters: int


def grow(world: World, width: int, policy: Policy) -> list[Stage]:
    """The stages of a search of the world."""
    stages: list[Stage] = []
    steps = world.children(0, width)
    while True:
        live = [node for node in steps if not world.nodes.finished[node]]
        if not live or len(stages) + 1 == MAX_STEPS:
            return [*stages, Stage(steps, [], [], 0)]
        counts, clusters = _share_out(world, live, policy)
        stages.append(Stage(steps, live, counts, clusters))
        steps = [
            child
            for node, count in zip(live, counts, strict=True)
            if count
            for child in world.children(node, count)
        ]


def _share_out(world: World, live: list[int], policy: Policy) -> tuple[list[int], int]:
    width = len(live)
    scores = [world.nodes.scores[node] for node in live]
    if not policy.lambda_b:
        return walk_ceilings(width, rebase_weights(scores)), 0
    clusters = None
    if policy.lambda_d > 0 and width > 1:
        clusters = cluster(world.embeddings(live), policy.threshold)
    by_token = policy.node_cost == "token"
    costs = [float(tokens) if by_token else 1.0 for tokens in world.nodes.tokens]
    if by_token:
        costs[0] = 0.0  # the prompt, which every choice keeps
    kept = ets_select(
        [count / width for count in walk_ceilings(width, rebase_weights(scores))],
        world.nodes.parents,
        live,
        costs,
        clusters,
        lambda_b=policy.lambda_b,
        lambda_d=policy.lambda_d,
    )
    survivors = [i for i, keep in enumerate(kept) if keep]
    shares = walk_ceilings(width, rebase_weights([scores[i] for i in survivors]))
    by_survivor = dict(zip(survivors, shares, strict=True))
    return [by_survivor.get(i, 0) for i in range(width)], len(set(clusters or ()))


def distinct_tokens(nodes: Nodes, leaves: Sequence[int]) -> int:
    """Tokens on the paths of the leaves, each node once, the prompt left out: what ETS's code counts."""
    return sum(nodes.tokens[node] for node in retained_nodes(nodes.parents, leaves) if node)


class Account(NamedTuple):
    """What a search comes to. kv_sum: `distinct_tokens` of all candidates before each selection, summed.
    kept: of `live` candidates of all selections. voted, best: whether the weighted vote of the finished
    branches, and the one of the best score, is right. found: whether any is."""

    kv_sum: int
    selections: int
    live: int
    kept: int
    clusters: int
    voted: bool
    best: bool
    found: bool


def account(nodes: Nodes, stages: Sequence[Stage]) -> Account:
    choosing = [stage for stage in stages if stage.live]
    ended = [node for stage in stages for node in stage.steps if nodes.finished[node]]
    answers = [None if nodes.answers[node] is None else str(nodes.answers[node]) for node in ended]
    scores = [nodes.scores[node] for node in ended]
    votes, right = vote(answers, scores), str(RIGHT)
    best = max(range(len(ended)), key=scores.__getitem__, default=None)
    return Account(
        kv_sum=sum(distinct_tokens(nodes, stage.live) for stage in choosing),
        selections=len(choosing),
        live=sum(len(stage.live) for stage in choosing),
        kept=sum(count > 0 for stage in choosing for count in stage.counts),
        clusters=sum(stage.clusters for stage in choosing),
        voted=bool(votes) and next(iter(votes)) == right,
        best=best is not None and answers[best] == right,
        found=right in answers,
    )
