"""Ours: TreeDecoder, whose branches fork from a prompt that is read once."""

from __future__ import annotations

import time
from typing import Any

from adapter import serve
from tts_decode import Branch, SamplingParams, TreeDecoder, gather
from tts_decode.model.loading import load_model

from tts_kernels import _core


class Tts:
    def __init__(self, options: dict[str, Any]) -> None:
        model, tokenizer = load_model(options["model"], options.get("dtype", "auto"))
        self.decoder = TreeDecoder(model, tokenizer, kv_bytes=options.get("kv_bytes"))
        self.decoder.eos_token_ids = frozenset()
        self.about = {"weights": str(model.dtype), "kv": str(model.dtype), "isa": _core.cpu_isa()}

    def measure(self, prompt: list[int], branches: int, tokens: int) -> tuple[float, float]:
        return self.decoder.run(self._measure(prompt, branches, tokens))

    async def _measure(self, prompt: list[int], branches: int, tokens: int) -> tuple[float, float]:
        begin = time.perf_counter()
        root = await self.decoder.root(prompt, SamplingParams(1.0, max_tokens=tokens + 1))
        prefill = time.perf_counter() - begin
        leaves: list[Branch] = root.fork(branches)
        root.release()
        try:
            await gather(leaf.step(max_step_tokens=1) for leaf in leaves)  # from the prompt's logits
            begin = time.perf_counter()
            await gather(leaf.step(max_step_tokens=tokens) for leaf in leaves)
            return prefill, time.perf_counter() - begin
        finally:
            for leaf in leaves:
                leaf.release()


if __name__ == "__main__":
    serve(Tts)
