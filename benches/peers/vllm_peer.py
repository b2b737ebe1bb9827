"""vLLM on the CPU, eager, with its prefix cache."""

from __future__ import annotations

import time
from typing import Any

import vllm
from adapter import WholeRuns, serve


class Vllm(WholeRuns):
    def __init__(self, options: dict[str, Any]) -> None:
        self.llm = vllm.LLM(
            options["model"],
            dtype=options["dtype"],
            enforce_eager=True,
            enable_prefix_caching=True,
            max_model_len=options["context"],
            max_num_seqs=options["branches"],
            gpu_memory_utilization=0.25,  # of main memory, for weights and KV
            disable_log_stats=True,
        )
        self.about = {"version": vllm.__version__, "weights": options["dtype"], "kv": options["dtype"]}

    def run(self, prompt: list[int], branches: int, tokens: int) -> float:
        sampling = vllm.SamplingParams(
            n=branches, temperature=1.0, max_tokens=tokens, ignore_eos=True, detokenize=False
        )
        begin = time.perf_counter()
        self.llm.generate({"prompt_token_ids": prompt}, sampling, use_tqdm=False)
        return time.perf_counter() - begin


if __name__ == "__main__":
    serve(Vllm)
