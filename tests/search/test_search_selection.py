"""Selections of best of n, votes, beams, REBASE and ETS, reproduced from the tree of a search."""

import math
import sys
import types
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from published_walk import best_leaves, exact_counts, published_counts
from search_options import vowels
from tiny_searches import PROMPT, children, levels, path, run, search_decoder
from tts_decode.rewards import verifier
from tts_decode.search import sentence_embedder

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def decoder():
    return search_decoder()


def test_best_of_n_samples_what_forks_sample_and_takes_the_best(decoder):
    async def samples():
        root = await decoder.root(PROMPT)
        branches = root.fork(6)
        for branch in branches:
            while not branch.finished:
                await branch.step()
        texts = [branch.text for branch in branches]
        for branch in (root, *branches):
            branch.release()
        return texts

    expected = decoder.run(samples())
    result = run(decoder, "best_of_n")
    assert sorted(c.text for c in result.candidates) == sorted(expected)
    assert result.answer == max(expected, key=vowels)


def test_best_of_n_aggregates_the_scores_of_steps(decoder):
    last, lowest = run(decoder, "best_of_n"), run(decoder, "best_of_n", agg_strategy="min")
    assert {len(c.scores) for c in last.candidates} == {1}
    for candidate in lowest.candidates:
        assert len(candidate.scores) == math.ceil(len(candidate.tokens) / 6)
        assert candidate.score == min(candidate.scores)


def test_self_consistency_counts_votes(decoder):
    result = run(decoder, "self_consistency", n=9)
    answers = [str(len(c.text) % 3) for c in result.candidates]
    assert result.votes == Counter(answers)
    assert Counter(answers)[str(len(result.answer) % 3)] == max(result.votes.values())


def test_self_consistency_weighs_votes_by_a_scorer(decoder):
    result = run(decoder, "self_consistency", n=9, scorer=verifier(lambda text: float(len(text) % 3 == 1)))
    assert next(iter(result.votes)) == "1"
    assert len(result.answer) % 3 == 1


def test_self_consistency_with_only_abstentions_takes_the_likeliest(decoder):
    result = run(decoder, "self_consistency", extract=lambda text: None)
    assert result.votes == {}
    assert result.best == max(result.candidates, key=lambda c: c.logprob / len(c.tokens))


def test_beam_search_keeps_the_best_n_over_beam_width(decoder):
    result = run(decoder, "beam_search")
    selected = 0
    for level in levels(result.tree)[1:]:
        kept = [node.score for node in level if node.status == "kept"]
        dropped = [node.score for node in level if node.status == "pruned"]
        assert len(kept) <= 2
        if kept:
            selected += 1
            assert len(kept) == min(2, len(kept) + len(dropped))
            assert sum(len(children(result.tree, node)) for node in level) == 8
            assert min(kept) >= max(dropped, default=-math.inf)
    assert selected == len(result.stats.selections) >= 3


@pytest.mark.parametrize("options", [{}, {"allocation": "published"}, {"allocation": "exact"}])
def test_rebase_gives_continuations_by_the_softmax_of_scores(decoder, options):
    result = run(decoder, "rebase", n=12, **options)
    tree_levels = levels(result.tree)
    for level in tree_levels[1:-1]:
        live = [node for node in level if node.status != "finished"]
        scores = [node.score for node in live]
        if options == {"allocation": "exact"}:
            counts = exact_counts(len(live), scores)
        else:
            counts = published_counts(len(live), scores)
        assert [len(children(result.tree, node)) for node in live] == counts
    assert len(result.candidates) == 12  # the width shrinks by one for each finished branch


def test_kv_counter_counts_shared_tokens_once(decoder):
    result = run(decoder, "rebase", n=12)
    for level, selection in zip(levels(result.tree)[1:], result.stats.selections, strict=False):
        live = [node for node in level if node.status != "finished"]
        kept = [node for node in live if node.status == "kept"]
        for leaves, tokens in ((live, selection.kv_tokens), (kept, selection.kept_tokens)):
            needed = {node.id: len(node.tokens) for leaf in leaves for node in path(result.tree, leaf.id)}
            assert tokens == sum(needed.values())
        assert (selection.width, selection.kept) == (len(live), len(kept))
    assert result.stats.kv_tokens == sum(s.kv_tokens for s in result.stats.selections)


@pytest.mark.parametrize("allocation", ["published", "exact"])
@pytest.mark.parametrize("lambda_d", [0.0, 1.5])
def test_ets_without_a_node_cost_is_rebase(decoder, lambda_d, allocation):
    expected = run(decoder, "rebase", allocation=allocation)
    result = run(decoder, "ets", lambda_b=0.0, lambda_d=lambda_d, allocation=allocation)
    assert (result.best, result.candidates, result.tree) == (
        expected.best,
        expected.candidates,
        expected.tree,
    )


@pytest.mark.parametrize("node_cost", ["node", "token"])
def test_ets_prunes_more_than_rebase_at_the_same_width(decoder, node_cost):
    plain = run(decoder, "rebase", n=16, softmax_temperature=1.0)
    result = run(
        decoder, "ets", n=16, softmax_temperature=1.0, lambda_b=2.0, lambda_d=0.0, node_cost=node_cost
    )
    for level, selection in zip(levels(result.tree)[1:], result.stats.selections, strict=False):
        live = [node for node in level if node.status != "finished"]
        assert sum(len(children(result.tree, node)) for node in live) == len(live) == selection.width
    first, first_plain = result.stats.selections[0], plain.stats.selections[0]
    assert first.width == first_plain.width
    assert first.kept < first_plain.kept
    assert first.kept_tokens < first_plain.kept_tokens
    assert first.resident_bytes <= first_plain.resident_bytes


@pytest.mark.parametrize("node_cost", ["node", "token"])
def test_ets_keeps_what_the_cost_model_keeps(decoder, node_cost):
    """Each selection made again from the tree alone; the prompt has no price in tokens."""
    result = run(decoder, "ets", n=12, lambda_b=1.5, lambda_d=0.0, node_cost=node_cost)
    tree_levels = levels(result.tree)
    pruned = 0
    for level in tree_levels[1:-1]:
        live = [node for node in level if node.status != "finished"]
        prices = [1 if node_cost == "node" else len(node.tokens) for node in result.tree]
        prices[0] = int(node_cost == "node")
        kept = best_leaves(
            [Fraction(c, len(live)) for c in published_counts(len(live), [n.score for n in live])],
            [{node.id for node in path(result.tree, leaf.id)} for leaf in live],
            prices,
            Fraction(3, 2),
        )
        scores = [node.score for node, keep in zip(live, kept, strict=True) if keep]
        counts = iter(published_counts(len(live), scores))
        expected = [next(counts) if keep else 0 for keep in kept]
        assert [len(children(result.tree, node)) for node in live] == expected
        pruned += kept.count(False)
    assert pruned > 0


def test_ets_asks_for_hidden_states_only_while_it_runs(decoder):
    seen = []

    async def score(branches):
        seen.append(decoder.keep_hidden)
        assert all(branch.steps[-1].hidden.shape == (64,) for branch in branches)
        return [0.5] * len(branches)

    run(decoder, "ets", scorer=score)
    assert set(seen) == {1}
    assert decoder.keep_hidden == 0


def test_sentence_embedder_embeds_the_texts_of_the_steps(decoder, monkeypatch):
    class SentenceTransformer:
        def __init__(self, name):
            assert name == "some/model"

        def encode(self, texts, batch_size):
            assert all(isinstance(text, str) for text in texts)
            return np.array([[1.0, len(text)] for text in texts])

    module = types.SimpleNamespace(SentenceTransformer=SentenceTransformer)
    monkeypatch.setitem(sys.modules, "sentence_transformers", module)
    assert run(decoder, "ets", embed=sentence_embedder("some/model")).candidates


def test_ets_coverage_keeps_one_leaf_of_each_cluster(decoder):
    """At a high price of nodes, one leaf of each of the clusters that `embed` makes is what remains. The walk
    of ceilings would starve the lowest of the four."""
    seen = []

    def embed(steps):
        seen.append([step.text for step in steps])
        return np.eye(4)[[i % 4 for i in range(len(steps))]]

    result = run(decoder, "ets", n=12, lambda_b=5.0, lambda_d=10.0, embed=embed, allocation="exact")
    live = [node for node in levels(result.tree)[1] if node.status != "finished"]
    assert seen[0] == [node.text for node in live]
    assert result.stats.selections[0].kept == 4
    positions = [i for i, node in enumerate(live) if node.status == "kept"]
    assert sorted(i % 4 for i in positions) == [0, 1, 2, 3]
