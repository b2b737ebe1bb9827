"""Prefill of the default model end to end, beside transformers' forward.

Target: 2,048 tokens in no more than 1.05x the time of transformers' forward, which here makes the logits of
the last token only, as ours does.
"""

from __future__ import annotations

import random

import pytest
import torch
from bench_tree_attention import medians
from pytest_benchmark.fixture import BenchmarkFixture
from transformers import DynamicCache
from tts_decode import TreeDecoder
from tts_decode.engines.loading import load_model

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
    print("\n" + ", ".join(f"{name} {value}" for name, value in benchmark.extra_info.items()))
    benchmark.pedantic(lambda: decoder.run(prefill()), rounds=1)
