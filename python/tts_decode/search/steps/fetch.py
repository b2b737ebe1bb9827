"""FETCH: beam search over hyper-nodes, which merge states that say the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ...core.checks import at_least
from ...rewards.scorer import Scorer
from ...select import extract_answer, hyper_nodes, top_k
from ..answers import Extract
from ..decisions import DecideBy
from ..hidden import hidden_states
from ..result import SearchResult
from ..run import SearchRun
from ..strategy import strategy
from .beams import check_beams
from .ets import Embed, step_clusters

if TYPE_CHECKING:
    from ...core.interfaces import Branch


@strategy("beam search over clusters of steps that say the same")
async def fetch(
    run: SearchRun,
    *,
    n: int = 16,
    scorer: Scorer,
    beam_width: int = 4,
    max_steps: int = 50,
    cluster_threshold: float = 0.15,
    max_tokens_step: int = 256,
    embed: Embed | None = None,
    decide_by: DecideBy = "max",
    agg_strategy: str = "last",
    extract: Extract = extract_answer,
) -> SearchResult:
    """Beam search over merged sibling steps that say the same; lacks the models that the paper trains.

    Wang et al., "Don't Get Lost in the Trees: Streamlining LLM Reasoning by Overcoming Tree Search
    Exploration Pitfalls", arXiv 2502.11183: FETCH's state merging in its beam search. Defaults of `max_steps`
    and `cluster_threshold` come from its code, whose beam is 5 hyper-nodes with 5 steps each (n = 25,
    beam_width = 5).

    Args:
        n: maximum number of steps sampled at a time: `n // beam_width` hyper-nodes continue. The first step
            samples `beam_width` only, since the root is one state.
        scorer: scores every step.
        beam_width: steps sampled from each hyper-node, a divisor of `n`. Members of the hyper-node take
            turns, best first; members beyond `beam_width` free their pages.
        max_steps: depth at which the search ends with what it has.
        cluster_threshold: cosine distance below which sibling steps are one state (average linkage).
        max_tokens_step: longer steps are dropped, and so are empty ones and repetitions of the previous step.
        embed: embeddings of the new steps; None uses the mean of the model's own last hidden states over each
            step.
        decide_by: which candidate is the answer: "max", the best-scored one; "last", the one with the best
            last step; "weighted" or "majority", a vote of answers. See `search.decisions`.
        agg_strategy: how a state's score is computed from the scores on its path: "last" as published, or
            another of `select.aggregation`.
        extract: the answer in a text, or None to abstain.

    A hyper-node's value is its best member's. Finished states merge among themselves; they become candidates,
    and their hyper-nodes keep their places in the beam from then on, so that the search ends when the best `n
    // beam_width` are all finished.

    Departures. Nothing is trained: the paper's clusters come from a SimCSE model trained on steps judged
    equal, here from the model's hidden states or from `embed` (`sentence_embedder` takes such a model); its
    verifiers are trained by temporal differences and averaged, which `rewards.ensemble` does for given ones.
    The paper also merges states in best-first search and in MCTS; its code drops answers that end without the
    phrase of its data set.
    """
    check_beams(n, beam_width)
    at_least(1, max_steps=max_steps, max_tokens_step=max_tokens_step)
    if not cluster_threshold >= 0:
        raise ValueError(f"cluster_threshold: got {cluster_threshold}, expected 0 or more")
    run.aggregate_by(agg_strategy)
    run.decide_by(decide_by, extract)

    def dropped(branch: Branch) -> bool:
        *before, step = branch.steps
        repeats = not step.text or (bool(before) and before[-1].text == step.text)
        return len(step.tokens) > max_tokens_step or (repeats and not branch.finished)

    async def merged(siblings: list[Branch]) -> list[list[Branch]]:
        """Returns hyper-nodes of sibling steps, finished ones first, as in the published code."""
        groups: list[list[Branch]] = []
        for finished in (True, False):
            states = [b for b in siblings if b.finished == finished and not dropped(b)]
            if len(states) > 1:
                labels = await step_clusters(run, states, embed, cluster_threshold)
                nodes = hyper_nodes(labels, run.aggregated(states))
                groups += [[states[i] for i in node] for node in nodes]
            elif states:
                groups.append(states)
        return groups

    with hidden_states(run.root.decoder, embed is None):
        ended: list[float] = []  # values of the finished hyper-nodes
        siblings = [run.fork(run.root, beam_width)]  # per hyper-node
        for step in range(1, max_steps + 1):
            live = [branch for group in siblings for branch in group]
            await run.step(live)
            await run.score(live, scorer)
            if run.over:
                break
            nodes = [node for group in siblings for node in await merged(group)]
            values = [run.aggregated(node[:1])[0] for node in nodes]
            done = [node[0].finished for node in nodes]
            # earlier hyper-nodes come first among equals
            best = top_k(ended + values, n // beam_width)
            beam = [nodes[i - len(ended)] for i in best if i >= len(ended) and not done[i - len(ended)]]
            ended += [value for value, finished in zip(values, done, strict=True) if finished]
            if not nodes and not ended:  # every step is to be dropped
                break
            for branch in live:
                if dropped(branch):
                    run.prune([branch])
                elif branch.finished:
                    run.end(branch)
            live = [branch for branch in live if not branch.released]
            if not beam:
                run.prune(live)
                break
            if step < max_steps:
                siblings = _expand(run, live, beam, beam_width)
        return await run.result()


def _expand(
    run: SearchRun, live: Sequence[Branch], beam: Sequence[Sequence[Branch]], beam_width: int
) -> list[list[Branch]]:
    """Returns `beam_width` forks of each hyper-node of the beam; its members take turns."""
    chosen = [[node[j % len(node)] for j in range(beam_width)] for node in beam]
    counts = {branch.id: group.count(branch) for group in chosen for branch in group}
    forks = iter(run.expand(live, [counts.get(branch.id, 0) for branch in live]))
    copies = {branch.id: [next(forks) for _ in range(counts.get(branch.id, 0))] for branch in live}
    return [[copies[branch.id].pop(0) for branch in group] for group in chosen]
