"""OpenVINO GenAI: continuous batching over a paged cache with prefix caching."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import openvino
import openvino_genai as genai
from adapter import WholeRuns, serve


class OpenVino(WholeRuns):
    """options: model, kv (f32, bf16, u8), branches (the most). The cache grows as it is needed."""

    def __init__(self, options: dict[str, Any]) -> None:
        scheduler = genai.SchedulerConfig()
        scheduler.enable_prefix_caching = True
        scheduler.max_num_seqs = options["branches"]
        scheduler.max_num_batched_tokens = 2048
        self.pipeline = genai.ContinuousBatchingPipeline(
            options["model"], scheduler, "CPU", {"KV_CACHE_PRECISION": options["kv"]}
        )
        self.about = {
            "version": genai.__version__,
            "weights": options["model"].rpartition("-")[2].removesuffix(".gguf"),
            "kv": options["kv"],
        }

    def run(self, prompt: list[int], branches: int, tokens: int) -> float:
        config = genai.GenerationConfig()
        config.max_new_tokens, config.ignore_eos = tokens, True
        config.do_sample, config.temperature = True, 1.0
        config.num_return_sequences = branches
        ids = openvino.Tensor(np.array([prompt], np.int64))
        begin = time.perf_counter()
        results = self.pipeline.generate([ids], [config])
        seconds = time.perf_counter() - begin
        generated = [len(ids) for result in results for ids in result.m_generation_ids]
        if generated != [tokens] * branches:
            raise RuntimeError(f"generated {generated} tokens, expected {branches} times {tokens}")
        return seconds


if __name__ == "__main__":
    serve(OpenVino)
