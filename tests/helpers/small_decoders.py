"""A decoder with few pages, and the state of its KV, for the tests of failures."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from primitives import make
from transformers import PreTrainedModel
from tts_decode import TreeDecoder

PROMPT = list(range(30, 70))
PAGE_BYTES = 24576  # 3 layers, 2 KV heads, head_dim 32, 16 tokens, float32, K and V


def small_decoder(model: PreTrainedModel, *, pages: int = 100, **options: object) -> TreeDecoder:
    return make(model, kv_bytes=pages * PAGE_BYTES, **options)


def kv_state(decoder: TreeDecoder) -> tuple[int, ...]:
    stats = decoder.stats()
    return stats.branches, stats.logical_tokens, stats.unique_tokens, stats.resident_bytes


@contextmanager
def refused(decoder: TreeDecoder, error: type[Exception], match: str) -> Iterator[None]:
    """An error that leaves the KV as it was."""
    before = kv_state(decoder)
    with pytest.raises(error, match=match):
        yield
    assert kv_state(decoder) == before
