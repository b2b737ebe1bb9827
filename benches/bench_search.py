"""Measures the default model end to end: prefill against transformers' forward, and whole searches.

Target: a prefill of 2,048 tokens in at most 1.05x the time of transformers' forward, which here computes only
the last token's logits, as ours does. A search has 16 branches of 32 tokens, which never end early, on a
prompt of 512.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from transformers import DynamicCache
from tts_decode import Branch, SamplingParams, TreeDecoder
from tts_decode.model.loading import load_model
from tts_decode.search import beam_search, best_of_n
from tts_decode.search.result import SearchResult

from benches.timing import medians, print_info

BRANCHES, TOKENS = 16, 32

pytestmark = pytest.mark.model
_source = random.Random(0)


@pytest.fixture(scope="module")
def decoder() -> TreeDecoder:
    decoder = TreeDecoder(*load_model(), kv_bytes=1 << 30)
    decoder.eos_token_ids = frozenset()
    return decoder


def prompt_of(length: int) -> list[int]:
    """Another one each time, so that none is cached."""
    return [_source.randrange(1000, 40000) for _ in range(length)]


async def alike(branches: Sequence[Branch]) -> list[float]:
    return [0.5] * len(branches)


@pytest.mark.parametrize("length", [512, 2048])
def test_prefill(decoder: TreeDecoder, benchmark: BenchmarkFixture, length: int) -> None:
    async def prefill() -> None:
        (await decoder.root(prompt_of(length))).release()

    def forward() -> None:
        with torch.inference_mode():
            cache = DynamicCache(config=decoder.model.config)
            decoder.model(torch.tensor([prompt_of(length)]), past_key_values=cache, logits_to_keep=1)

    t = medians({"tree": lambda: decoder.run(prefill()), "transformers": forward}, rounds=2)
    benchmark.extra_info |= {name: round(seconds, 3) for name, seconds in t.items()}
    benchmark.extra_info["of_transformers"] = round(t["tree"] / t["transformers"], 2)
    print_info(benchmark)
    benchmark.pedantic(lambda: decoder.run(prefill()), rounds=1)


@pytest.mark.parametrize("strategy", ["best_of_n", "beam_search"])
def test_search(decoder: TreeDecoder, benchmark: BenchmarkFixture, strategy: str) -> None:
    """beam_search: four steps of 8 tokens, four beams kept, by scores that cost nothing."""
    step = TOKENS if strategy == "best_of_n" else TOKENS // 4
    sampling = SamplingParams(temperature=1.0, seed=0, max_tokens=TOKENS, max_step_tokens=step)

    async def search() -> SearchResult:
        root = await decoder.root(prompt_of(512), sampling)
        try:
            if strategy == "best_of_n":
                return await best_of_n(root, n=BRANCHES, scorer=alike)
            return await beam_search(root, n=BRANCHES, beam_width=4, scorer=alike)
        finally:
            root.release()

    stats = decoder.run(search()).stats
    benchmark.pedantic(lambda: decoder.run(search()), rounds=1)
    benchmark.extra_info["tokens"] = stats.generated_tokens
    benchmark.extra_info["tokens_per_second"] = round(stats.generated_tokens / benchmark.stats.stats.median)
    print_info(benchmark)
