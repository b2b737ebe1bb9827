"""Our engine: TreeDecoder, whose branches fork from a prompt that is prefilled once."""

from __future__ import annotations

import time
from typing import Any

import torch
from adapter import KeptPrompt, serve
from tts_decode import Branch, SamplingParams, TreeDecoder, gather
from tts_decode.model.loading import load_model

from tts_kernels import _core


class Tts(KeptPrompt):
    """options: model, kv_bytes, kv (the name of its dtype), and those of `load_model`: dtype, weights."""

    root: Branch | None = None

    def __init__(self, options: dict[str, Any]) -> None:
        chosen = {name: options[name] for name in ("dtype", "weights") if name in options}
        model, tokenizer = load_model(options["model"], pack_weights=True, **chosen)
        kv = getattr(torch, options["kv"]) if "kv" in options else model.dtype
        self.decoder = TreeDecoder(model, tokenizer, kv_bytes=options.get("kv_bytes"), kv_dtype=kv)
        self.decoder.eos_token_ids = frozenset()
        weights = options.get("weights", str(model.dtype))
        self.about = {"weights": weights, "kv": str(kv), "isa": _core.cpu_isa()}

    def prefill(self, prompt: list[int]) -> float:
        if self.root is not None:
            self.root.release()
        begin = time.perf_counter()
        self.root = self.decoder.run(self.decoder.root(prompt, SamplingParams(1.0)))
        return time.perf_counter() - begin

    def decode(self, branches: int, tokens: int) -> float:
        return self.decoder.run(self._decode(branches, tokens))

    async def _decode(self, branches: int, tokens: int) -> float:
        assert self.root is not None
        leaves: list[Branch] = self.root.fork(branches)
        limits = {"max_tokens": tokens + 1}
        try:
            await gather(
                leaf.step(max_step_tokens=1, **limits) for leaf in leaves
            )  # from the prompt's logits
            begin = time.perf_counter()
            await gather(leaf.step(max_step_tokens=tokens, **limits) for leaf in leaves)
            return time.perf_counter() - begin
        finally:
            for leaf in leaves:
                leaf.release()


if __name__ == "__main__":
    serve(Tts)
