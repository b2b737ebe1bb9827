"""Strategies on a tiny random model: their results are consistent, repeatable, and their options checked."""

import json
import math

import pytest
import tts_decode.search as search_package
from tiny_searches import PROMPT, SCORED, children, path, run, search, search_decoder, tokens_of
from tts_decode.rewards import mean_logprob
from tts_decode.search import STRATEGIES, Strategy, ets, get_strategy, rebase

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def decoder():
    return search_decoder()


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
        if node.status not in ("prompt", "finished"):  # a later attempt may continue from a finished answer
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


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        *((s.name, {s.size: 0}, f"{s.size}: got 0, expected >= 1") for s in STRATEGIES.values()),
        ("beam_search", {"beam_width": 3}, "expected a divisor of n = 8; set beam_width=2 or n=9"),
        ("beam_search", {"n": 2}, "beam_width: got 4, expected a divisor of n = 2; set beam_width=2 or n=4"),
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
        return await run.result(run.end(await run.complete(branch)), options)

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
        "allocation": "published",
        "decide_by": "max",
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
