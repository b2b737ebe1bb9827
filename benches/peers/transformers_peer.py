"""transformers: `generate` from a cache that holds the prompt once for each branch, prefilled once."""

from __future__ import annotations

import time
from typing import Any

import torch
import transformers
from adapter import serve
from transformers import AutoModelForCausalLM, DynamicCache, GgufConfig


class Transformers:
    def __init__(self, options: dict[str, Any]) -> None:
        dtype = getattr(torch, options["dtype"])
        folder, _, file = options["model"].rpartition("/")
        if file.endswith(".gguf"):
            self.model = AutoModelForCausalLM.from_pretrained(
                folder, gguf_file=file, dtype=dtype, quantization_config=GgufConfig(dequantize=True)
            )
        else:
            self.model = AutoModelForCausalLM.from_pretrained(options["model"], dtype=dtype)
        self.model.eval()
        self.about = {"version": transformers.__version__, "weights": str(dtype), "kv": str(dtype)}

    def measure(self, prompt: list[int], branches: int, tokens: int) -> tuple[float, float]:
        ids = torch.tensor([prompt])
        cache = DynamicCache(config=self.model.config)
        with torch.inference_mode():
            begin = time.perf_counter()
            self.model(ids[:, :-1], past_key_values=cache, logits_to_keep=1)
            prefill = time.perf_counter() - begin
            cache.batch_repeat_interleave(branches)
            rows = ids.expand(branches, -1)
            begin = time.perf_counter()
            self.model.generate(
                rows,
                attention_mask=torch.ones_like(rows),
                past_key_values=cache,
                max_new_tokens=tokens,
                min_new_tokens=tokens,
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
            )
            return prefill, time.perf_counter() - begin


if __name__ == "__main__":
    serve(Transformers)
