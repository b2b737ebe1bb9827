"""transformers: `generate` from a cache that holds the prompt once for each branch, prefilled once.

With attention "flex_attention", decoding runs torch's compiled FlexAttention; the prefill stays torch's SDPA.
"""

from __future__ import annotations

import time
from typing import Any

import torch
import transformers
from adapter import serve
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel

# From the whole vocabulary.
SAMPLING: dict[str, Any] = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}


def load(options: dict[str, Any]) -> PreTrainedModel:
    model = AutoModelForCausalLM.from_pretrained(options["model"], dtype=getattr(torch, options["dtype"]))
    return model.eval()


class Transformers:
    """options: model (a folder), dtype, attention (sdpa if missing)."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.model = load(options)
        self.attention = options.get("attention", "sdpa")
        dtype = options["dtype"]
        self.about = {"version": transformers.__version__, "weights": dtype, "kv": dtype}
        self.about["attention"] = self.attention
        if self.attention == "flex_attention":
            # Where it compiles too often, it would go on uncompiled and many times slower.
            torch._dynamo.config.recompile_limit = 64
            torch._dynamo.config.fail_on_recompile_limit_hit = True
            # One branch has a kernel of its own, two too; from 3 on any number has the same. 300 tokens are
            # more than one block of the mask.
            for branches in (1, 2, 3):
                self.measure(list(range(1000, 1300)), branches, 4)

    def measure(self, prompt: list[int], branches: int, tokens: int) -> tuple[float, float]:
        ids = torch.tensor([prompt])
        cache = DynamicCache(config=self.model.config)
        with torch.inference_mode():
            self.model.set_attn_implementation("sdpa")
            begin = time.perf_counter()
            self.model(ids[:, :-1], past_key_values=cache, logits_to_keep=1)
            prefill = time.perf_counter() - begin
            cache.batch_repeat_interleave(branches)
            rows = ids.expand(branches, -1)
            self.model.set_attn_implementation(self.attention)
            begin = time.perf_counter()
            self.model.generate(
                rows,
                attention_mask=torch.ones_like(rows),
                past_key_values=cache,
                max_new_tokens=tokens,
                min_new_tokens=tokens,
                **SAMPLING,
            )
            return prefill, time.perf_counter() - begin


if __name__ == "__main__":
    serve(Transformers)
