"""Whole searches with the default model: 16 branches of 32 tokens that never meet an end, a prompt of 512."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from pytest_benchmark.fixture import BenchmarkFixture
from tts_decode import Branch, SamplingParams, TreeDecoder
from tts_decode.engines.loading import load_model
from tts_decode.search import beam_search, best_of_n
from tts_decode.search.result import SearchResult

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
    print("\n" + ", ".join(f"{name} {value}" for name, value in benchmark.extra_info.items()))
