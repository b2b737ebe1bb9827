"""Compares step times that the cost law predicts from the machine's rates with measured ones.

Attention: decode steps of one query per branch, on trees of one shared prompt and private tails of 64 tokens.
There are enough layers that keys and values come from memory, not from a cache, as in a model whose weights
pass through the cache in between. Whole steps: the default model.

Two predictions use the same counts: the roofline, in which arithmetic and reading overlap fully, and the sum
of both, which is Kinetics' eFLOPs divided by the machine's flops per second. Both assume the machine's full
rates, which no kernel reaches: the geometric mean of predicted / measured gives the overall error; the worst
entry, with that mean divided out, shows how well a prediction distinguishes trees.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from tts_decode import SamplingParams, TreeDecoder, gather
from tts_decode.bench.machine import measure_machine
from tts_decode.cost import Machine, ModelShape, SparseCounts, StepCost, StepCounts, step_cost
from tts_decode.model.loading import resolve_dtype

from tts_kernels import KVPool, Selection, TreePlan, count_selected, plan, select_pages, tree_attention

PAGE, PRIVATE, ROUNDS = 16, 64, 5
FAN_OUTS = (1, 4, 16, 64)
CONTEXTS = (512, 2048, 8192)
LAYOUTS = [(32, 8, 128), (9, 3, 64)]  # query heads, KV heads, head_dim
STEP_BYTES = 1 << 27  # of keys and values read in a step, at least; more than the caches hold


class Setting(NamedTuple):
    """q: [branches, heads, d], the same for all layers."""

    pool: KVPool
    q: torch.Tensor
    tree: TreePlan
    shape: ModelShape


class Timed(NamedTuple):
    """A step to time, and what the law says it costs."""

    call: Callable[[], object]
    cost: StepCost


class Row(NamedTuple):
    """seconds: measured, of a step of this cost."""

    name: str
    cost: StepCost
    seconds: float


def dense(s: Setting) -> Timed:
    def step() -> None:
        for layer in range(s.pool.num_layers):
            tree_attention(s.q, *s.pool.layer(layer), s.tree)

    return Timed(step, StepCost(attention=step_cost(s.shape, StepCounts.of_plan(s.tree)).attention))


def sparse(s: Setting) -> Timed:
    """At 1/8 of the pages, chosen anew in each layer."""
    budget = s.tree.max_columns // 8

    def choose(layer: int) -> Selection:
        return select_pages(s.q, s.pool.layer_summaries(layer), s.tree, budget)

    def step() -> None:
        for layer in range(s.pool.num_layers):
            tree_attention(s.q, *s.pool.layer(layer), s.tree, selection=choose(layer))

    layers = s.pool.num_layers
    read = count_selected(choose(0), s.tree)  # the same in all layers, whose keys are the same
    counts = SparseCounts(layers, layers * read.pairs, layers * read.loads, 1)
    cost = step_cost(s.shape, StepCounts.of_plan(s.tree), counts)
    return Timed(step, StepCost(attention=cost.attention, selection=cost.selection))


KINDS: dict[str, Callable[[Setting], Timed]] = {"dense": dense, "sparse 1/8": sparse}


def make_setting(fan_out: int, context: int, layout: tuple[int, int, int], dtype: torch.dtype) -> Setting:
    torch.manual_seed(0)
    heads, kv_heads, d = layout
    shared, own = context // PAGE, PRIVATE // PAGE
    pages = shared + fan_out * own
    layer_bytes = 2 * pages * PAGE * kv_heads * d * dtype.itemsize
    layers = -(-STEP_BYTES // layer_bytes)
    pool = KVPool(
        num_layers=layers, num_kv_heads=kv_heads, head_dim=d, num_pages=pages, dtype=dtype, summaries="mean"
    )
    k, v = torch.randn((2, pages * PAGE, kv_heads, d)).to(dtype)
    for layer in range(layers):
        pool.append(layer, k, v, torch.arange(pages * PAGE, dtype=torch.int32))
    tails = shared + torch.arange(fan_out * own, dtype=torch.int32).view(fan_out, own)
    prompt = torch.arange(shared, dtype=torch.int32).expand(fan_out, -1)
    lengths = torch.full((fan_out,), context + PRIVATE, dtype=torch.int32)
    shape = ModelShape(layers, heads, kv_heads, d, 1, 1, 1, 1, dtype.itemsize, dtype.itemsize)
    q = torch.randn((fan_out, heads, d)).to(dtype)
    return Setting(pool, q, plan(torch.cat([prompt, tails], dim=1), lengths), shape)


def median_seconds(call: Callable[[], object]) -> float:
    """After one call to warm up."""
    rounds = []
    for _ in range(ROUNDS + 1):
        begin = time.perf_counter()
        call()
        rounds.append(time.perf_counter() - begin)
    return statistics.median(rounds[1:])


def report(title: str, machine: Machine, rows: list[Row]) -> None:
    rates = f"{machine.flops / 1e9:.0f} GFLOP/s, {machine.bandwidth / 1e9:.1f} GB/s"
    print(f"\n{title}: {rates}, threads: {torch.get_num_threads()}; milliseconds, predicted / measured")
    laws: dict[str, Callable[[StepCost], float]] = {
        "roofline": machine.roofline_seconds,
        "sum": machine.seconds,
    }
    ratios = {law: [predict(row.cost) / row.seconds for row in rows] for law, predict in laws.items()}
    for i, row in enumerate(rows):
        shown = (
            f"{law} {predict(row.cost) * 1e3:8.2f} ({ratios[law][i]:.2f})" for law, predict in laws.items()
        )
        print(f"  {row.name:<32} measured {row.seconds * 1e3:8.2f}  {'  '.join(shown)}")
    for law, values in ratios.items():
        mean = statistics.geometric_mean(values)
        worst = max(max(value / mean, mean / value) for value in values)
        print(f"  {law}: geometric mean {mean:.2f}, worst entry {worst:.2f} times off that mean")


@pytest.mark.parametrize("layout", LAYOUTS, ids=["32/8/128", "9/3/64"])
def test_attention(layout: tuple[int, int, int]) -> None:
    dtype = resolve_dtype("auto")
    machine = measure_machine(dtype, torch.device("cpu"))
    rows = []
    for context in CONTEXTS:
        for fan_out in FAN_OUTS:
            setting = make_setting(fan_out, context, layout, dtype)
            for kind, make in KINDS.items():
                timed = make(setting)
                name = f"{kind}, {fan_out} x {context} tokens"
                rows.append(Row(name, timed.cost, median_seconds(timed.call)))
    report(f"attention {'/'.join(map(str, layout))}, {dtype}", machine, rows)


@pytest.mark.model
def test_whole_steps() -> None:
    """Sampling and the scheduler included, which the law does not count."""
    decoder = TreeDecoder.from_pretrained(
        kv_bytes=1 << 30, sampling=SamplingParams(max_step_tokens=9, max_tokens=1 << 20)
    )
    machine = measure_machine(decoder.model.dtype, torch.device("cpu"))
    rows = []

    async def steps(context: int, fan_out: int) -> None:
        root = await decoder.root([11 + i % 1000 for i in range(context)])
        branches = root.fork(fan_out)
        await gather(branch.step(max_step_tokens=1) for branch in branches)  # for the copies of pages
        before = decoder.stats()
        await gather(branch.step() for branch in branches)
        after = decoder.stats()
        count = after.steps - before.steps
        name = f"{count} steps of {fan_out} x {context} tokens"
        rows.append(Row(name, after.cost - before.cost, after.seconds - before.seconds))
        for branch in (root, *branches):
            branch.release()

    for context in CONTEXTS[:2]:
        for fan_out in FAN_OUTS:
            decoder.run(steps(context, fan_out))
    report(f"whole steps, {decoder.model.dtype}", machine, rows)
