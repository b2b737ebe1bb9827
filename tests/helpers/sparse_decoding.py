"""Sparse decoding for bitwise comparison: settings, a decoder, and the output of a branch."""

from __future__ import annotations

from functools import cache
from typing import Any

from tiny_models import EOS, byte_tokenizer, tiny_model
from transformers import PreTrainedModel
from tts_decode import Branch, SamplingParams, SparseConfig, TreeDecoder

PAGE = 16
PROMPT = list(b"The quick brown fox jumps over the lazy dog. " * 8)[:330]  # ends within its 21st page
SAMPLING = SamplingParams(temperature=0.8, max_step_tokens=24, suppress_token_ids=(EOS,))
CONFIG = SparseConfig(budget=6, recent=1, dense_layers=0, min_pages=1)
Record = list[Any]
crowd_model = cache(tiny_model)


def make(model: PreTrainedModel, config: SparseConfig | None = CONFIG, **options: Any) -> TreeDecoder:
    decoder = TreeDecoder(model, byte_tokenizer(), kv_bytes=1 << 24, sparse=config, **options)
    # The packed path, whose products do not depend on the batch.
    assert decoder.runtime.engine.packed is not None
    return decoder


async def outcome(branch: Branch) -> Record:
    return [branch.tokens, branch.logprobs, branch.entropies, (await branch.next_logprobs()).tolist()]
