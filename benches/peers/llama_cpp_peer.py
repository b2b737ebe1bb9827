"""llama.cpp: one unified cache; `seq_cp` gives the prompt's cells to every branch."""

from __future__ import annotations

import time
from typing import Any

import llama_cpp as ll
from adapter import KeptPrompt, serve

CHUNK = 2048  # tokens of a batch
KV_TYPES = {"F32": 0, "F16": 1, "Q8_0": 8, "BF16": 30}  # ggml_type; the binding names not all of them


class LlamaCpp(KeptPrompt):
    """options: model, kv (of KV_TYPES), flash_attention, context (tokens over all branches), branches (the
    most), threads."""

    def __init__(self, options: dict[str, Any]) -> None:
        ll.llama_backend_init()
        self.model = ll.llama_model_load_from_file(options["model"].encode(), ll.llama_model_default_params())
        params = ll.llama_context_default_params()
        params.n_ctx = options["context"]
        params.n_batch, params.n_ubatch = CHUNK, 512
        params.n_seq_max = max(options["branches"], 2) + 1  # `serve` tries two
        params.n_threads = params.n_threads_batch = options["threads"]
        params.kv_unified = True
        params.type_k = params.type_v = KV_TYPES[options["kv"]]
        params.flash_attn_type = (
            ll.LLAMA_FLASH_ATTN_TYPE_ENABLED
            if options["flash_attention"]
            else ll.LLAMA_FLASH_ATTN_TYPE_DISABLED
        )
        self.context = ll.llama_init_from_model(self.model, params)
        self.memory = ll.llama_get_memory(self.context)
        self.batch = ll.llama_batch_init(CHUNK, 0, 1)
        self.sampler = ll.llama_sampler_chain_init(ll.llama_sampler_chain_default_params())
        ll.llama_sampler_chain_add(self.sampler, ll.llama_sampler_init_dist(0))
        self.about = {
            "version": ll.__version__,
            "weights": options["model"].rpartition("-")[2].removesuffix(".gguf"),
            "kv": options["kv"],
            "flash attention": options["flash_attention"],
        }

    def prefill(self, prompt: list[int]) -> float:
        ll.llama_memory_clear(self.memory, False)
        begin = time.perf_counter()
        for first in range(0, len(prompt), CHUNK):
            part = prompt[first : first + CHUNK]
            self._decode([(token, first + i, 0) for i, token in enumerate(part)], last_only=True)
        seconds = time.perf_counter() - begin
        self.length = len(prompt)
        self.next_token = ll.llama_sampler_sample(self.sampler, self.context, -1)
        return seconds

    def decode(self, branches: int, tokens: int) -> float:
        for branch in range(1, branches + 1):  # the prompt stays alone in sequence 0
            ll.llama_memory_seq_cp(self.memory, 0, branch, -1, -1)
        drawn = [self.next_token] * branches
        begin = time.perf_counter()
        for place in range(self.length, self.length + tokens):
            self._decode([(token, place, branch) for branch, token in enumerate(drawn, 1)])
            drawn = [ll.llama_sampler_sample(self.sampler, self.context, i) for i in range(branches)]
        seconds = time.perf_counter() - begin
        for branch in range(1, branches + 1):
            ll.llama_memory_seq_rm(self.memory, branch, -1, -1)
        return seconds

    def _decode(self, rows: list[tuple[int, int, int]], *, last_only: bool = False) -> None:
        batch = self.batch
        batch.n_tokens = len(rows)
        for i, (token, place, branch) in enumerate(rows):
            batch.token[i], batch.pos[i] = token, place
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, branch
            batch.logits[i] = not last_only or i == len(rows) - 1
        if code := ll.llama_decode(self.context, batch):
            raise RuntimeError(f"llama_decode: {code}")


if __name__ == "__main__":
    serve(LlamaCpp)
