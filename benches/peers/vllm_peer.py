"""vLLM on the CPU, eager, with its prefix cache. Decoding is the difference between runs on the cached
prompt."""

from __future__ import annotations

import time
from typing import Any

import vllm
from adapter import difference, serve


class Vllm:
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

    def measure(self, prompt: list[int], branches: int, tokens: int) -> tuple[float, float]:
        prefill = self._run(prompt, 1, 1)
        self._run(prompt, branches, 1)  # takes longer than the same once more
        runs = [self._run(prompt, branches, count) for count in (1, tokens + 1, 1)]
        return prefill, difference(*runs)

    def _run(self, prompt: list[int], branches: int, tokens: int) -> float:
        sampling = vllm.SamplingParams(
            n=branches, temperature=1.0, max_tokens=tokens, ignore_eos=True, detokenize=False
        )
        begin = time.perf_counter()
        self.llm.generate({"prompt_token_ids": prompt}, sampling, use_tqdm=False)
        return time.perf_counter() - begin


if __name__ == "__main__":
    serve(Vllm)
