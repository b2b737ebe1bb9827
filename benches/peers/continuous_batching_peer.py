"""transformers' continuous batching: one request, whose branches fork after its prefill and share its pages.

Times are its own records of each token.
"""

from __future__ import annotations

import time
from typing import Any

import torch
import transformers
from adapter import serve
from transformers import ContinuousBatchingConfig, GenerationConfig
from transformers_peer import SAMPLING, load

PAGE = 64  # tokens; a fork copies the last one


class ContinuousBatching:
    """options: model (a folder), dtype, context (tokens over all branches), branches (the most)."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.model = load(options)
        pages = options["context"] // PAGE + 2 * options["branches"] + 2  # a branch's own are partly filled
        self.batching = ContinuousBatchingConfig(page_size=PAGE, num_blocks=pages, max_batch_tokens=2048)
        dtype = options["dtype"]
        self.about = {"version": transformers.__version__, "weights": dtype, "kv": dtype}

    def measure(self, prompt: list[int], branches: int, tokens: int) -> tuple[float, float]:
        sampling = GenerationConfig(
            max_new_tokens=tokens + 1,  # the first is drawn from the prompt's logits
            **SAMPLING,
            num_return_sequences=branches,
            eos_token_id=-1,
            pad_token_id=0,
        )
        with torch.inference_mode():
            begin = time.perf_counter()
            outputs = self.model.generate_batch(
                [prompt], sampling, self.batching, record_timestamps=True, warmup=False
            ).values()
        for output in outputs:
            if output.error is not None:
                raise RuntimeError(output.error)
        generated = [len(output.generated_tokens) for output in outputs]
        if generated != [tokens + 1] * branches:
            raise RuntimeError(f"generated {generated} tokens, expected {branches} times {tokens + 1}")
        first = min(output.timestamps[0] for output in outputs)
        return first - begin, max(output.timestamps[-1] for output in outputs) - first


if __name__ == "__main__":
    serve(ContinuousBatching)
