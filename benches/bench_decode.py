"""Compares decoding speed on the real model with `model.generate`; prints the ratios at the end.

Targets: with 64 branches on a 2,048-token prompt, at least 10x the tokens/s of `generate` with 64 copies of
the prompt; with one branch on a 64-token prompt, at least 0.9x. Neither time includes the prompt: `generate`
starts from a cache that already holds it, expanded to 64 rows, which saves it 64 prefills.
Decoding is greedy and never ends early. Run on an otherwise idle machine: pytest benches/bench_decode.py
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from transformers import DynamicCache
from tts_decode import Branch, SamplingParams, TreeDecoder, gather
from tts_decode.model.loading import load_model

from tts_kernels import KVTree, plan

ONE, MANY = "1 branch, 64 tokens", "64 branches, 2,048 tokens"
CASES = {ONE: (1, 64), MANY: (64, 2048)}
ROUNDS = 3


@dataclass
class Bench:
    """A decoder that never meets an end of sequence, and what was measured so far."""

    decoder: TreeDecoder
    speeds: dict[tuple[str, str], float] = field(default_factory=dict)  # (case, who) -> tokens/s
    host_seconds: float = 0.0

    def record(self, benchmark: BenchmarkFixture, case: str, who: str, tokens: int) -> None:
        speed = tokens / benchmark.stats.stats.median
        benchmark.extra_info["tokens_per_second"] = speed
        self.speeds[case, who] = speed


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    model, tokenizer = load_model()
    decoder = TreeDecoder(model, tokenizer, kv_bytes=1 << 30)
    decoder.eos_token_ids = frozenset()
    bench = Bench(decoder)
    yield bench
    print(f"\n\n{model.dtype}, {torch.get_num_threads()} threads, tokens/s of decoding")
    print(f"{'':28}{'generate':>10}{'tree':>10}{'ratio':>9}")
    for case in CASES:
        generate, tree = (bench.speeds.get((case, who)) for who in ("generate", "tree"))
        if generate and tree:
            print(f"{case:28}{generate:10.1f}{tree:10.1f}{tree / generate:8.2f}x")
    if bench.host_seconds and (MANY, "tree") in bench.speeds:
        share = bench.host_seconds * bench.speeds[MANY, "tree"] / 64
        print(f"append, tables, plan: {bench.host_seconds * 1e3:.2f} ms, {share:.2%} of a step")


def prompt_of(length: int) -> list[int]:
    ids: list[int] = torch.randint(
        100, 40_000, (length,), generator=torch.Generator().manual_seed(0)
    ).tolist()
    return ids


@pytest.mark.parametrize("case", CASES)
def test_generate(bench: Bench, benchmark: BenchmarkFixture, case: str) -> None:
    branches, length = CASES[case]
    tokens = 32 if branches == 1 else 4
    model = bench.decoder.model
    ids = torch.tensor([prompt_of(length)])

    def prefill() -> tuple[tuple[Any], dict[str, Any]]:
        cache = DynamicCache(config=model.config)
        with torch.inference_mode():
            model(ids[:, :-1], past_key_values=cache, logits_to_keep=1)
            cache.batch_repeat_interleave(branches)
        return (cache,), {}

    def generate(cache: DynamicCache) -> None:
        rows = ids.expand(branches, -1)
        model.generate(
            rows,
            attention_mask=torch.ones_like(rows),
            past_key_values=cache,
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
        )

    benchmark.group = case
    benchmark.pedantic(generate, setup=prefill, rounds=ROUNDS)
    bench.record(benchmark, case, "generate", branches * tokens)


@pytest.mark.parametrize("case", CASES)
def test_tree(bench: Bench, benchmark: BenchmarkFixture, case: str) -> None:
    branches, length = CASES[case]
    tokens = 32 if branches == 1 else 16
    decoder = bench.decoder
    params = SamplingParams(temperature=0, max_tokens=10**6, max_step_tokens=tokens)

    async def prefill() -> list[Branch]:
        root = await decoder.root(prompt_of(length), params)
        leaves = root.fork(branches)
        await gather(leaf.step(max_step_tokens=1) for leaf in leaves)  # from the prompt's logits, no forward
        root.release()
        return leaves

    async def decode(leaves: list[Branch]) -> None:
        await gather(leaf.step() for leaf in leaves)

    def release(leaves: list[Branch]) -> None:
        for leaf in leaves:
            leaf.release()

    benchmark.group = case
    benchmark.pedantic(
        lambda leaves: decoder.run(decode(leaves)),
        setup=lambda: ((decoder.run(prefill()),), {}),
        teardown=release,
        rounds=ROUNDS,
    )
    bench.record(benchmark, case, "tree", branches * tokens)


def test_host_work(bench: Bench, benchmark: BenchmarkFixture) -> None:
    """What the tree and the planner take of a step of 64 branches on 2,048 tokens."""
    tree = KVTree(1024)
    root = tree.create()
    tree.append([root], [prompt_of(2048)])
    leaves = tree.fork(root, 64)

    def step() -> None:
        tree.append(leaves, [[1]] * len(leaves))
        plan(*tree.block_tables(leaves))

    benchmark.pedantic(step, rounds=50, warmup_rounds=2)
    bench.host_seconds = benchmark.stats.stats.median
