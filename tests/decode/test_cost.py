"""The cost law against counts made token by token and page by page; the decoder accounts what it foresees."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import FAMILIES, VOCAB, byte_tokenizer, tiny_model
from tts_decode import Branch, Budget, SamplingParams, TreeDecoder, gather
from tts_decode.cost import (
    KINETICS_INTENSITY,
    Machine,
    ModelShape,
    SparseBudget,
    SparseCounts,
    StepCost,
    StepCounts,
    Work,
    attended_pairs,
    search_cost,
    step_cost,
)
from tts_decode.model.hf import HFEngine
from tts_decode.model.host_steps import distinct_pages
from tts_decode.model.shape import shape_of_config

from tts_kernels import plan

PAGE = 16
SHAPE = ModelShape.gated(
    num_layers=3, num_q_heads=6, num_kv_heads=2, head_dim=32, hidden=40, intermediate=70, vocab=90
)
# q, k, v and o of 3 layers, gate, up and down of 3 layers, LM head
WEIGHTS = 3 * (40 * 192 + 40 * 64 + 40 * 64 + 192 * 40) + 3 * (3 * 40 * 70) + 40 * 90


def forest(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Block tables, lengths and query lengths of branches that share leading pages at random."""
    rng = random.Random(seed)
    free = iter(range(10_000))
    paths = [[next(free) for _ in range(rng.randint(1, 5))]]
    for _ in range(rng.randint(0, 7)):
        above = rng.choice(paths)
        paths.append(above[: rng.randint(0, len(above))] + [next(free) for _ in range(rng.randint(1, 4))])
    tables = np.full((len(paths), max(map(len, paths))), 7777, dtype=np.int32)
    for row, path in zip(tables, paths, strict=True):
        row[: len(path)] = path
    lengths = np.array([PAGE * len(path) - rng.randrange(PAGE) for path in paths], dtype=np.int32)
    queries = np.array([rng.randint(0, min(length, 20)) for length in lengths], dtype=np.int32)
    queries[rng.randrange(len(queries))] = 1
    return tables, lengths, queries


@pytest.mark.parametrize("seed", range(12))
def test_a_step_costs_what_enumeration_counts(seed: int) -> None:
    rng = random.Random(100 + seed)
    tables, lengths, queries = forest(seed)
    chosen_layers = rng.choice([0, 1, 3])
    vectors = rng.choice([1, 2])
    flops = scoring_flops = pairs = 0
    pages: set[int] = set()
    loads: set[tuple[int, int, int]] = set()
    for table, length, count in zip(tables, lengths, queries, strict=True):
        for position in range(length - count, length):
            for layer in range(SHAPE.num_layers):
                for head in range(SHAPE.num_q_heads):
                    kv_head = head // 3
                    for token in range(position + 1):
                        page = int(table[token // PAGE])
                        pages.add(page)
                        if layer >= chosen_layers:
                            loads.add((layer, page, kv_head))
                            flops += 2 * 32 + 2 * 32  # q k, p v
                    if layer < chosen_layers:
                        scoring_flops += 2 * 32 * vectors * (position // PAGE + 1)
                        for column in range(position // PAGE + 1):
                            if (column * 7 + head // 3 * 3 + position) % 3 == 0:  # some choice of pages
                                flops += 4 * 32 * PAGE
                                loads.add((layer, int(table[column]), kv_head))
                                pairs += head % 3 == 0  # a KV head has three query heads
    tokens = int(queries.sum())
    tree_plan = plan(tables, lengths, queries, page_size=PAGE)
    sparse_loads = sum(layer < chosen_layers for layer, _, _ in loads)
    sparse = SparseCounts(chosen_layers, pairs, sparse_loads, vectors) if chosen_layers else None
    cost = step_cost(SHAPE, StepCounts.of_plan(tree_plan, logits=2), sparse)

    assert cost.weights == Work(2 * (WEIGHTS - 40 * 90) * tokens, 2 * (WEIGHTS - 40 * 90))
    assert cost.logits == Work(2 * 40 * 90 * 2, 2 * 40 * 90)
    assert cost.attention == Work(flops, len(loads) * 2 * PAGE * 32 * 2)
    summaries = chosen_layers * len(pages) * 2 * vectors * 32 * 2
    assert cost.selection == Work(scoring_flops, summaries)
    assert cost.flops == sum(part.flops for part in cost.parts())
    assert cost.combined(10) == cost.flops + 10 * cost.bytes


def test_three_branches_by_hand() -> None:
    """Two pages shared, a page each: queries at positions 40, 33 and 47."""
    tables = np.array([[0, 1, 2], [0, 1, 3], [0, 1, 4]], dtype=np.int32)
    counts = StepCounts.of_plan(plan(tables, np.array([41, 34, 48], dtype=np.int32)))
    assert counts == StepCounts(tokens=3, logits=3, pairs=41 + 34 + 48, columns=9, pages=5, page_size=16)
    cost = step_cost(SHAPE, counts)
    assert cost.attention == Work(3 * 6 * 4 * 32 * 123, 3 * 2 * 5 * (2 * 16 * 32 * 2))
    assert cost.weights.bytes + cost.logits.bytes == 2 * WEIGHTS  # once, whatever the number of branches
    machine = Machine(flops=1e6, bandwidth=1e5)
    assert machine.intensity == 10
    slower = [max(part.flops / 1e6, part.bytes / 1e5) for part in cost.parts()]
    assert machine.roofline_seconds(cost) == pytest.approx(sum(slower))
    assert machine.seconds(cost) == pytest.approx(cost.flops / 1e6 + cost.bytes / 1e5)
    assert cost + cost - cost == cost
    assert cost.combined() == cost.flops + KINETICS_INTENSITY * cost.bytes
    assert step_cost(SHAPE, counts._replace(logits=0)).logits == Work(0, 0)


def test_experts_are_read_as_tokens_need_them() -> None:
    mixture = replace(SHAPE, parameters=SHAPE.active_parameters + 5 * 10**5)
    head = 40 * 90
    counts = StepCounts(tokens=1, logits=1, pairs=1, columns=1, pages=1, page_size=PAGE)
    one, many = (step_cost(mixture, counts._replace(tokens=n)) for n in (1, 10**4))
    assert one.weights.bytes == 2 * (SHAPE.active_parameters - head)
    assert many.weights.bytes == 2 * (mixture.parameters - head)
    assert many.weights.flops == 10**4 * one.weights.flops


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 20))
def test_seen_counts_tokens_and_pages(length: int, queries: int, page_size: int) -> None:
    queries = min(queries, length)
    positions = range(length - queries, length)
    tokens, pages = attended_pairs(length, queries, page_size)
    assert tokens == sum(position + 1 for position in positions)
    assert pages == sum(position // page_size + 1 for position in positions)
    arrays = attended_pairs(np.array([length]), np.array([queries]), page_size)
    assert [int(array[0]) for array in arrays] == [tokens, pages]


def test_distinct_pages_leaves_out_holes_and_what_lies_behind_the_end() -> None:
    tables = np.array([[3, 1, 9], [3, -1, 5], [0, 9, 9]], dtype=np.int32)
    lengths = np.array([32, 33, 16], dtype=np.int32)
    assert distinct_pages(tables, lengths, num_pages=10, page_size=PAGE) == len({3, 1, 5, 0})


# -- the shape of a model


@pytest.mark.parametrize("family", FAMILIES)
def test_shape_of_a_config_is_that_of_the_model(family: str) -> None:
    model = tiny_model(family)
    shape = HFEngine(model).shape
    assert shape == shape_of_config(model.config, torch.float32)
    if family == "llama":
        sizes = {"num_q_heads": 4, "num_kv_heads": 2, "head_dim": 32, "hidden": 64, "intermediate": 96}
        assert shape == ModelShape.gated(num_layers=3, vocab=VOCAB, weight_bytes=4, kv_bytes=4, **sizes)
    tied = type(model.config)(**model.config.to_dict() | {"tie_word_embeddings": True})
    assert shape_of_config(tied, torch.float32) == shape  # the table is not counted, the head is


def test_shape_of_a_mixture() -> None:
    config = hf.Qwen3MoeConfig(
        vocab_size=64,
        hidden_size=32,
        moe_intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        num_experts=8,
        num_experts_per_tok=2,
        decoder_sparse_step=1,
    )
    shape = shape_of_config(config, torch.bfloat16)
    experts = 2 * 8 * 3 * 32 * 48
    rest = 2 * (32 * 64 + 2 * 32 * 32 + 64 * 32 + 32 * 8) + 32 * 64  # attention, router, LM head
    assert shape.parameters == rest + experts
    assert shape.active_parameters == rest + experts // 4
    assert shape.weight_bytes == 2


# -- whole searches


def test_a_search_is_the_sum_of_its_steps() -> None:
    cost = search_cost(SHAPE, prompt=40, branches=3, generated=30, chunk=24)
    steps = StepCost()
    for length in range(41, 70):
        own = -(-length // PAGE) - 2  # the third page of the prompt is partly filled: a copy for each
        tables = np.array([[0, 1, *range(2 + b * own, 2 + (b + 1) * own)] for b in range(3)], dtype=np.int32)
        steps += step_cost(SHAPE, StepCounts.of_plan(plan(tables, np.full(3, length, dtype=np.int32))))
    assert cost.decode == steps
    assert cost.steps == 29
    table = np.arange(3, dtype=np.int32)[None]
    chunks = [
        StepCounts.of_plan(plan(table, *(np.array([n], dtype=np.int32) for n in lengths)), logits=logits)
        for lengths, logits in (((24, 24), 0), ((40, 16), 1))
    ]
    assert cost.prompt == step_cost(SHAPE, chunks[0]) + step_cost(SHAPE, chunks[1])
    assert cost.total == cost.prompt + cost.decode


def test_sparse_search_by_hand() -> None:
    """A step of 4 branches at 324 tokens after a prompt of 320: 20 shared pages and one of each branch."""
    sizes = {"prompt": 320, "branches": 4, "generated": 5}
    budget = SparseBudget(6, share="tree", summaries="minmax", dense_layers=1)
    last = search_cost(SHAPE, **sizes, budget=budget).last
    page_bytes = 2 * PAGE * 32 * 2
    dense = Work(6 * 4 * 32 * 4 * 324, 2 * 24 * page_bytes)  # one layer
    # two layers: 5 shared pages and the own one, for each of 4 branches and 2 KV heads
    sparse = Work(2 * 6 * 4 * 32 * 4 * 6 * PAGE, 2 * 2 * (5 + 4) * page_bytes)
    assert last.attention == Work(dense.flops + sparse.flops, dense.bytes + sparse.bytes)
    assert last.selection == Work(2 * (2 * 2 * 32) * 4 * 21 * 6, 2 * (2 * 32) * 24 * 2 * 2)
    apart = search_cost(SHAPE, **sizes, budget=budget._replace(share="branch")).last
    assert apart.attention.flops == last.attention.flops
    shared = 20 * (1 - 0.75**4)  # expected size of the union of four choices of 5 among 20
    expected = dense.bytes + 2 * 2 * (shared + 4) * page_bytes
    assert apart.attention.bytes == pytest.approx(expected)


def test_a_tail_that_is_chosen_from_by_hand() -> None:
    """4 branches of 320 tokens each behind a prompt of 320: 20 shared pages and 20 of each; 10 are read."""
    sizes = {"prompt": 320, "branches": 4, "generated": 321}
    budget = SparseBudget(10, share="tree", keep_tail=False)
    last = search_cost(SHAPE, **sizes, budget=budget).last
    page_bytes = 2 * PAGE * 32 * 2
    assert last.attention.flops == 3 * 6 * 4 * 32 * 4 * 10 * PAGE  # layers, heads, branches, pages
    assert last.attention.bytes == 3 * 2 * (5 + 4 * 5) * page_bytes
    kept = search_cost(SHAPE, **sizes, budget=budget._replace(keep_tail=True)).last
    assert kept.attention.bytes == 3 * 2 * (1 + 4 * 20) * page_bytes  # one shared page and all of the tails
    alone = {"prompt": 320, "branches": 1, "generated": 321}  # one branch is its own prompt's
    costs = [search_cost(SHAPE, **alone, budget=budget._replace(keep_tail=k)) for k in (True, False)]
    assert costs[0] == costs[1]


@pytest.mark.parametrize("share", ["branch", "tree"])
@pytest.mark.parametrize("branches", [1, 5])
def test_budgets_order_costs_and_all_pages_are_dense(share: str, branches: int) -> None:
    sizes = {"prompt": 300, "branches": branches, "generated": 20}
    dense = search_cost(SHAPE, **sizes)
    flops = []
    for pages in (1, 2, 9, 19, 20, 21, 500):
        budget = SparseBudget(pages, share=share)
        cost = search_cost(SHAPE, **sizes, budget=budget)
        assert cost.prompt == dense.prompt
        flops.append(cost.decode.attention.flops)
        if pages >= 20:  # of 319 tokens
            assert cost == dense
    assert flops == sorted(flops)
    short = search_cost(SHAPE, prompt=3, branches=branches, generated=40, budget=SparseBudget(1, share=share))
    assert (
        short.decode.attention.bytes
        <= search_cost(SHAPE, prompt=3, branches=branches, generated=40).decode.attention.bytes
    )


# -- the decoder's accounting


@pytest.fixture
def decoder(one_thread: None) -> TreeDecoder:
    decoder = TreeDecoder(tiny_model(), byte_tokenizer(), kv_bytes=1 << 24)
    decoder.eos_token_ids = frozenset()  # a random model ends its texts at random
    return decoder


@pytest.mark.parametrize(("prompt", "branches"), [(53, 3), (64, 1), (5, 4)])
def test_the_decoder_accounts_what_was_foreseen(decoder: TreeDecoder, prompt: int, branches: int) -> None:
    async def search() -> None:
        root = await decoder.root([7] * prompt, SamplingParams(max_tokens=25, max_step_tokens=25))
        await gather(branch.step() for branch in root.fork(branches))

    decoder.run(search())
    foreseen = search_cost(decoder.runtime.engine.shape, prompt=prompt, branches=branches, generated=25)
    assert decoder.stats().cost == foreseen.total


def test_budgets_share_all_of_the_cost(decoder: TreeDecoder) -> None:
    budgets = [Budget(max_cost=1e15), Budget(intensity=3)]

    async def search(budget: Budget, prompt: list[int]) -> None:
        root = await decoder.root(prompt, SamplingParams(max_tokens=12, max_step_tokens=12), budget)
        for branch in root.fork(3):
            await branch.extend([1, 2, 3])
            await gather(child.step() for child in branch.fork(2))

    decoder.run_all([search(budgets[0], [3] * 70), search(budgets[1], [4] * 20)])
    cost = decoder.stats().cost
    assert cost.bytes > 0
    paid = sum(budget.cost_used for budget in budgets)
    assert cost.combined(3) < paid < cost.combined()

    alone = Budget(max_cost=1e15)
    before = decoder.stats().cost
    decoder.run(search(alone, [5] * 20))
    assert alone.cost_used == pytest.approx((decoder.stats().cost - before).combined(), rel=1e-9)
    assert alone.cost_used < 1e15
    assert not alone.exhausted


def test_a_search_ends_when_its_cost_is_reached_and_not_before(decoder: TreeDecoder) -> None:
    params = SamplingParams(max_tokens=40, max_step_tokens=40)
    shape = decoder.runtime.engine.shape

    async def tokens(max_cost: float) -> tuple[int, Budget, Branch]:
        budget = Budget(max_cost=max_cost)
        root = await decoder.root([9] * 30, params, budget)
        (branch,) = root.fork(1)
        step = await branch.step()
        root.release()
        branch.release()
        return len(step.tokens), budget, branch

    for count in (1, 7, 20):
        # What was spent when token `count` is drawn; one more eFLOP allows that token, but not the next.
        spent = search_cost(shape, prompt=30, branches=1, generated=count).total.combined()
        got, budget, branch = decoder.run(tokens(spent + 1))
        assert got == count
        assert branch.finish_reason == "budget"
        assert budget.exhausted
        following = search_cost(shape, prompt=30, branches=1, generated=count + 1).total.combined()
        assert budget.cost_used == pytest.approx(following)
    got, budget, branch = decoder.run(tokens(1e15))
    assert got == 40
    assert branch.finish_reason == "max_tokens"
    assert not budget.exhausted


def test_integers_of_numpy_do_not_overflow() -> None:
    sizes = {"num_q_heads": np.uint8(6), "num_kv_heads": np.uint8(2), "head_dim": np.uint8(32)}
    assert replace(SHAPE, **sizes) == SHAPE
    counts, sparse = StepCounts(200, 200, 250, 200, 100, 200), SparseCounts(2, 250.0, 200.0, 2)
    narrow = StepCounts(*map(np.uint8, counts))
    expected = step_cost(SHAPE, counts, sparse)
    assert step_cost(replace(SHAPE, **sizes), narrow, sparse) == expected
    assert step_cost(SHAPE, narrow, SparseCounts(*map(np.uint8, sparse[:4]))) == expected
    budget, search = SparseBudget(*map(np.uint8, [4])), {"branches": 3, "generated": 200}
    found = search_cost(SHAPE, prompt=np.uint8(200), budget=budget, **search)
    assert found == search_cost(SHAPE, prompt=200, budget=SparseBudget(4), **search)


# -- bad input


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"num_layers": 0}, ValueError, "num_layers: got 0, expected >= 1"),
        ({"num_layers": 1.5}, TypeError, r"num_layers: got 1\.5, expected an int"),
        ({"num_layers": 2**70}, ValueError, "num_layers: got 1180591620717411303424"),
        ({"weight_bytes": float("nan")}, ValueError, "weight_bytes: got nan"),
        ({"hidden": "40"}, TypeError, "hidden: got '40', expected an int"),
        ({"kv_bytes": "2"}, TypeError, "kv_bytes: got '2', expected a finite number > 0"),
        ({"num_kv_heads": 4}, ValueError, "num_q_heads: got 6, expected a multiple of num_kv_heads = 4"),
        ({"active_parameters": 10}, ValueError, "at least the LM head's 3600"),
        ({"parameters": WEIGHTS - 1}, ValueError, "at most parameters"),
    ],
)
def test_bad_shapes(change: dict[str, Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        replace(SHAPE, **change)


@pytest.mark.parametrize(
    ("counts", "sparse", "match"),
    [
        ({"pairs": -1}, None, r"counts\.pairs: got -1"),
        ({"page_size": 0}, None, r"counts\.page_size: got 0, expected >= 1"),
        ({}, SparseCounts(4, 1, 1, 1), r"sparse\.layers: got 4, expected 0 <= sparse\.layers <= 3"),
        ({}, SparseCounts(1, 1, 1, 3), r"sparse\.vectors: got 3"),
        ({}, SparseCounts(1, 1, -2, 1), r"sparse\.loads: got -2"),
        ({}, SparseCounts(1, float("inf"), 2, 1), r"sparse\.pairs: got inf"),
    ],
)
def test_bad_counts(counts: dict[str, int], sparse: SparseCounts | None, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        step_cost(SHAPE, StepCounts(1, 1, 5, 1, 1, PAGE)._replace(**counts), sparse)


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"prompt": 0}, ValueError, "prompt: got 0, expected 1 <= prompt"),
        ({"branches": 2.0}, TypeError, r"branches: got 2\.0, expected an int"),
        ({"budget": SparseBudget(0)}, ValueError, r"budget\.pages: got 0"),
        ({"budget": SparseBudget(4, share="siblings")}, ValueError, r"budget\.share: got 'siblings'"),
        ({"budget": SparseBudget(4, summaries="max")}, ValueError, r"budget\.summaries: got 'max'"),
        ({"budget": SparseBudget(4, dense_layers=4)}, ValueError, "but the model has 3 layers"),
        ({"budget": SparseBudget(4, keep_tail=1)}, TypeError, r"budget\.keep_tail: got 1"),
        ({"budget": SparseBudget(True)}, TypeError, r"budget\.pages: got True"),
        # Every step is counted: billions would take hours.
        ({"generated": 2**31}, ValueError, "generated: got 2147483648, expected 1 <= generated <= 1000000"),
        (
            {"prompt": 2**60},
            ValueError,
            "prompt: got 1152921504606846976, expected 1 <= prompt <= 2147483647",
        ),
        ({"prompt": 10**9, "chunk": 8}, ValueError, "at most 1000000 chunks of 8 tokens; take larger chunks"),
        ({"branches": 2**60}, ValueError, "branches: got 1152921504606846976"),
    ],
)
def test_bad_searches(change: dict[str, Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        search_cost(SHAPE, **{"prompt": 10, "branches": 2, "generated": 5} | change)


@pytest.mark.parametrize(("flops", "bandwidth"), [(0, 1), (1, -1), (float("inf"), 1)])
def test_bad_machines(flops: float, bandwidth: float) -> None:
    with pytest.raises(ValueError, match="expected a finite number > 0"):
        Machine(flops, bandwidth)
