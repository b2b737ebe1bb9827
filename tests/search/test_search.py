"""Strategies on a tiny random model: what each selects, what it releases, how it ends."""

import asyncio
import json
import math
import sys
import types
from collections import Counter

import numpy as np
import pytest
import tts_decode.search as search_package
from search_options import small_options, vowels
from tiny_models import byte_tokenizer, tiny_model
from tts_decode import Budget, SamplingParams, TreeDecoder, gather
from tts_decode.rewards import mean_logprob, verifier
from tts_decode.search import STRATEGIES, SearchRun, Strategy, ets, get_strategy, rebase, sentence_embedder
from tts_decode.select import allocate, ets_select, rebase_weights

pytestmark = pytest.mark.usefixtures("one_thread")

PROMPT = "What is 2 + 3?"
SAMPLING = SamplingParams(max_tokens=24, max_step_tokens=6, seed=5)
SCORED = [name for name in STRATEGIES if STRATEGIES[name].needs_scorer]


@pytest.fixture(scope="module")
def decoder():
    model = tiny_model()
    model.config.max_position_embeddings = 4096  # a byte is a token, and prompts made of answers are long
    return TreeDecoder(model, byte_tokenizer(), kv_bytes=64 << 20, sampling=SAMPLING)


async def search(decoder, name, *, prompt=PROMPT, sampling=None, budget=None, **changes):
    root = await decoder.root(prompt, sampling, budget)
    try:
        return await get_strategy(name)(root, **(small_options(name) | changes))
    finally:
        root.release()


def run(decoder, name, **arguments):
    """One search; afterwards nothing of it is left in the decoder."""
    try:
        return decoder.run(search(decoder, name, **arguments))
    finally:
        assert decoder.stats().branches == 0
        assert decoder.stats().resident_bytes == 0


def levels(tree):
    """Nodes by depth, the prompt at depth 0, each level in order of id."""
    depth, found = {}, []
    for node in tree:
        depth[node.id] = 0 if node.parent < 0 else depth[node.parent] + 1
        if depth[node.id] == len(found):
            found.append([])
        found[depth[node.id]].append(node)
    return found


def children(tree, node):
    return [child for child in tree if child.parent == node.id]


def path(tree, node):
    while node >= 0:
        yield tree[node]
        node = tree[node].parent


def tokens_of(tree, node):
    """Tokens from the prompt to the end of a node, through nodes of which only a part was taken."""
    tokens, upto = [], None
    for step in path(tree, node):
        tokens[:0] = step.tokens[:upto]
        upto = step.at
    return tuple(tokens)


@pytest.mark.parametrize("name", STRATEGIES)
def test_result_is_consistent_and_nothing_is_left_behind(decoder, name):
    before = decoder.stats().generated_tokens
    result = run(decoder, name)
    assert result.strategy == name
    assert result.best in result.candidates
    assert result.answer == result.best.text
    tree = result.tree
    assert [node.id for node in tree] == list(range(len(tree)))
    assert tree[0].status == "prompt"
    assert bytes(tree[0].tokens).decode() == PROMPT
    assert all(node.parent < node.id for node in tree)
    for candidate in result.candidates:
        *_, prompt = path(tree, candidate.node)
        assert tokens_of(tree, candidate.node) == (*prompt.tokens, *candidate.tokens)
        assert tree[candidate.node].status == "finished"
        assert candidate.complete
        assert candidate.logprob < 0
    for node in tree:
        if node.status not in ("prompt", "finished"):  # a later attempt may go on from a finished answer
            assert (node.status == "kept") == bool(children(tree, node))
    sampled = [node for node in tree if node.status != "prompt" and not node.forced]
    assert result.stats.generated_tokens == sum(len(node.tokens) for node in sampled)
    if name != "lm_beam_search":  # which forces the tokens that it chose
        assert result.stats.generated_tokens == decoder.stats().generated_tokens - before
    assert result.stats.peak_bytes >= 2 * decoder.stats().page_bytes
    assert json.loads(json.dumps(result.to_dict()))["best"]["tokens"] == list(result.best.tokens)


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_same_seed_gives_the_same_search(decoder, name):
    first, second = run(decoder, name), run(decoder, name)
    assert (first.best, first.candidates, first.tree) == (second.best, second.candidates, second.tree)


@pytest.mark.parametrize("name", ["beam_search", "ets", "lm_beam_search", "self_consistency"])
def test_a_search_is_the_same_alone_and_beside_others(decoder, name):
    prompts = [PROMPT, "abc", "What is the sum of 4 and 5?"]
    alone = [run(decoder, name, prompt=prompt) for prompt in prompts]
    together = decoder.run_all([search(decoder, name, prompt=prompt) for prompt in prompts])
    for one, other in zip(alone, together, strict=True):
        assert one.answer == other.answer
        assert [node.text for node in one.tree] == [node.text for node in other.tree]


# -- what each strategy selects


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


def test_rebase_gives_continuations_by_the_softmax_of_scores(decoder):
    result = run(decoder, "rebase", n=12)
    tree_levels = levels(result.tree)
    for level in tree_levels[1:-1]:
        live = [node for node in level if node.status != "finished"]
        counts = allocate(len(live), rebase_weights([node.score for node in live]))
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


@pytest.mark.parametrize("lambda_d", [0.0, 1.5])
def test_ets_without_a_node_cost_is_rebase(decoder, lambda_d):
    expected = run(decoder, "rebase")
    result = run(decoder, "ets", lambda_b=0.0, lambda_d=lambda_d)
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
    for depth, level in enumerate(tree_levels[1:-1], start=1):
        live = [node for node in level if node.status != "finished"]
        tree = [node for level in tree_levels[: depth + 1] for node in level]
        index = {node.id: i for i, node in enumerate(tree)}
        outcomes = [c / len(live) for c in allocate(len(live), rebase_weights([n.score for n in live]))]
        kept = ets_select(
            outcomes,
            [-1, *(index[node.parent] for node in tree[1:])],
            [index[node.id] for node in live],
            [1.0] * len(tree)
            if node_cost == "node"
            else [0.0, *(float(len(node.tokens)) for node in tree[1:])],
            lambda_b=1.5,
        )
        scores = [node.score for node, keep in zip(live, kept, strict=True) if keep]
        counts = iter(allocate(len(live), rebase_weights(scores)))
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
    """At a high price of nodes, one leaf of each of the clusters that `embed` makes is what remains."""
    seen = []

    def embed(steps):
        seen.append([step.text for step in steps])
        return np.eye(4)[[i % 4 for i in range(len(steps))]]

    result = run(decoder, "ets", n=12, lambda_b=5.0, lambda_d=10.0, embed=embed)
    live = [node for node in levels(result.tree)[1] if node.status != "finished"]
    assert seen[0] == [node.text for node in live]
    assert result.stats.selections[0].kept == 4
    positions = [i for i, node in enumerate(live) if node.status == "kept"]
    assert sorted(i % 4 for i in positions) == [0, 1, 2, 3]


# -- how a search ends


@pytest.mark.parametrize("name", STRATEGIES)
def test_an_exhausted_budget_ends_with_the_best_so_far(decoder, name):
    budget = Budget(max_tokens=40)
    result = run(decoder, name, budget=budget)
    assert budget.tokens_used <= 40
    assert result.stopped is not None or all(c.complete for c in result.candidates)
    assert result.best.tokens
    family = get_strategy(name).family
    if family != "graphs" and name != "forest_of_thought":  # which may end between two prompts' answers
        assert any(not c.complete for c in result.candidates)


def test_a_budget_that_is_used_up_ends_every_search_before_it_begins(decoder):
    for name in STRATEGIES:
        budget = Budget(max_tokens=8)
        budget.tokens_used = 8
        before = decoder.stats().forward_tokens
        result = run(decoder, name, budget=budget)
        assert result.stopped == "the budget's max_tokens is used up"
        assert [candidate.tokens for candidate in result.candidates] == [()]
        assert decoder.stats().forward_tokens - before <= len(PROMPT)


@pytest.mark.parametrize("name", ["beam_search", "rebase", "ets"])
def test_max_steps_ends_with_unfinished_candidates(decoder, name):
    result = run(decoder, name, max_steps=2)
    assert len(levels(result.tree)) == 3
    assert any(c.finish_reason is None for c in result.candidates)
    assert result.best == max(result.candidates, key=lambda c: (c.complete, c.score))


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_finished_root_is_the_answer(decoder, name):
    async def finished_root():
        root = await decoder.root(PROMPT)
        await root.step()
        root.finish()
        text = root.text
        result = await get_strategy(name)(root, **small_options(name))
        root.release()
        return text, result

    text, result = decoder.run(finished_root())
    assert result.answer == text
    assert len(result.tree) == 1


@pytest.mark.parametrize("name", SCORED)
@pytest.mark.parametrize(
    ("values", "message"),
    [
        (lambda branches: [math.nan] * len(branches), r"scorer broken: got the score nan for branch \d+"),
        (lambda branches: [math.inf] * len(branches), r"scorer broken: got the score inf for branch \d+"),
        (lambda branches: [0.5] * (len(branches) + 1), r"scorer broken: got \d+ scores for \d+ branches"),
    ],
)
def test_bad_scores_name_the_scorer_and_leave_nothing(decoder, name, values, message):
    calls = 0

    async def broken(branches):
        nonlocal calls
        calls += 1
        return values(branches) if calls == 2 else [0.5] * len(branches)

    with pytest.raises(ValueError, match=message):
        run(decoder, name, scorer=broken)


@pytest.mark.parametrize("name", SCORED)
def test_a_failing_scorer_ends_the_search_with_what_it_has(decoder, name):
    calls = 0

    async def failing(branches):
        nonlocal calls
        calls += 1
        if calls == 3:
            raise OSError("reward server gone")
        return [0.5] * len(branches)

    result = run(decoder, name, scorer=failing)
    assert result.stopped == "scorer failing raised OSError: reward server gone"
    assert result.best.tokens


@pytest.mark.parametrize("name", SCORED)
def test_a_hanging_scorer_ends_the_search_with_what_it_has(decoder, name):
    async def hanging(branches):
        await asyncio.sleep(60)

    async def limited():
        root = await decoder.root(PROMPT)
        result = await get_strategy(name)(
            SearchRun(root, scorer_timeout=0.02), **(small_options(name) | {"scorer": hanging})
        )
        root.release()
        return result

    result = decoder.run(limited())
    assert result.stopped == "scorer hanging gave no scores within 0.02 s"
    assert result.best.tokens
    assert decoder.stats().branches == 0


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_cancelled_search_leaves_nothing(decoder, name):
    async def cancelled():
        root = await decoder.root(PROMPT)
        task = asyncio.ensure_future(get_strategy(name)(root, **small_options(name)))
        while decoder.stats().branches < (2 if name == "forest_of_thought" else 3):  # its trees grow in turn
            assert not task.done()
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert decoder.stats().branches == 1
        assert (await root.step()).tokens  # the root is untouched
        root.release()

    decoder.run(cancelled())
    assert decoder.stats().resident_bytes == 0


def test_one_failure_ends_the_searches_beside_it(decoder):
    async def both():
        await gather(search(decoder, "rebase"), search(decoder, "beam_search", beam_width=3))

    with pytest.raises(ValueError, match="beam_width: got 3, expected a divisor of n = 8"):
        decoder.run(both())
    assert decoder.stats().branches == 0


# -- options


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        *((s.name, {s.size: 0}, f"{s.size}: got 0, expected >= 1") for s in STRATEGIES.values()),
        ("beam_search", {"beam_width": 3}, "beam_width: got 3, expected a divisor of n = 8"),
        ("beam_search", {"beam_width": 0}, "beam_width: got 0"),
        ("beam_search", {"max_steps": 0}, "max_steps: got 0"),
        (
            "rebase",
            {"agg_strategy": "mode"},
            "agg_strategy: got 'mode', expected one of last, min, prod, mean",
        ),
        ("best_of_n", {"agg_strategy": "mode"}, "agg_strategy: got 'mode'"),
        ("rebase", {"softmax_temperature": 0.0}, "softmax_temperature: got 0"),
        ("ets", {"softmax_temperature": -1.0}, "softmax_temperature: got -1"),
        ("ets", {"lambda_b": -0.5}, "lambda_b: got -0.5"),
        ("ets", {"lambda_d": math.inf}, "lambda_d: got inf"),
        ("ets", {"cluster_threshold": -1.0}, "cluster_threshold: got -1"),
        ("ets", {"node_cost": "byte"}, "node_cost: got 'byte'"),
        ("lm_beam_search", {"length_penalty": math.nan}, "length_penalty: got nan"),
        ("lm_beam_search", {"early_stopping": "always"}, "early_stopping: got 'always'"),
    ],
)
def test_bad_options_are_named(decoder, name, changes, message):
    with pytest.raises(ValueError, match=message):
        run(decoder, name, **changes)


def test_a_count_that_is_no_integer_is_refused(decoder):
    with pytest.raises(TypeError, match=r"n: got 2\.5"):
        run(decoder, "rebase", n=2.5)


@pytest.mark.parametrize(
    ("name", "option", "message"),
    [
        ("tpo", "rounds", r"tpo: unknown option 'rounds'; did you mean max_rounds\?$"),
        ("first_finish", "zzz", "first_finish: unknown option 'zzz'; expected one of n$"),
    ],
)
def test_an_unknown_option_is_refused_with_the_nearest_one(decoder, name, option, message):
    steps = decoder.stats().steps
    with pytest.raises(TypeError, match=message):
        run(decoder, name, **{option: 1})
    assert decoder.stats().steps == steps + 1  # the prompt's


def test_a_strategy_with_open_options_takes_any(decoder):
    async def told(run, **options):
        (branch,) = run.fork(run.root)
        return run.result(run.end(await run.complete(branch)), options)

    async def searched():
        root = await decoder.root(PROMPT)
        result = await Strategy(told, "what it was told")(root, beta=2.0)
        root.release()
        return result

    assert decoder.run(searched()).votes == {"beta": 2.0}


def test_every_strategy_is_exported():
    for name in search_package.__all__:
        assert hasattr(search_package, name)
    built_in = {name for name, made in STRATEGIES.items() if made.family != "own"}
    assert built_in <= set(search_package.__all__)


def test_registry():
    assert all(name == strategy.name for name, strategy in STRATEGIES.items())
    assert get_strategy("ets") is ets
    assert get_strategy("rebase").options == {
        "n": 16,
        "max_steps": 25,
        "softmax_temperature": 0.2,
        "agg_strategy": "last",
    }
    assert {"best_of_n", "beam_search", "rebase", "ets"} <= set(SCORED)
    with pytest.raises(
        ValueError, match="strategy: got 'oracle', expected one of adaptive_consistency, b4, best_of_n"
    ):
        get_strategy("oracle")


def test_a_strategy_runs_with_the_models_own_confidence(decoder):
    async def confident():
        root = await decoder.root(PROMPT)
        result = await rebase(root, n=4, scorer=mean_logprob())
        root.release()
        return result

    result = decoder.run(confident())
    assert result.best.score == pytest.approx(result.best.logprob / len(result.best.tokens))
