"""One arm of bench_vllm, in vLLM's environment: an engine that answers requests with the decoding rate.

Requests and answers are one JSON object per line.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

import torch
import vllm
from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend

from tts_kernels.integrations.vllm.packed import PackedAttentionImpl, PackedBackend, PackedMetadataBuilder


class StubBuilder(PackedMetadataBuilder):
    def build(self, common_prefix_len: int, common_attn_metadata: Any, fast_build: bool = False) -> Any:
        return common_attn_metadata


class StubImpl(PackedAttentionImpl):
    def forward(self, *args: Any, output: torch.Tensor, **keywords: Any) -> torch.Tensor:
        return output.zero_()


class StubBackend(PackedBackend):
    """Attention that takes no time: what vLLM needs for all else. Blocks are as ours."""

    @staticmethod
    def get_impl_cls() -> type[PackedAttentionImpl]:
        return StubImpl

    @staticmethod
    def get_builder_cls() -> type[PackedMetadataBuilder]:
        return StubBuilder


def decode_rate(llm: vllm.LLM, prompts: list[list[int]], tokens: int) -> float:
    """Tokens a second, from when all sequences have their first until one of them is done."""
    sampling = vllm.SamplingParams(temperature=1.0, max_tokens=tokens, ignore_eos=True, detokenize=False)
    engine = llm.llm_engine
    for number, prompt in enumerate(prompts):
        engine.add_request(str(number), {"prompt_token_ids": prompt}, sampling)
    lengths: dict[str, int] = {}
    begin, first = 0.0, 0
    while engine.has_unfinished_requests():
        for output in engine.step():
            lengths[output.request_id] = len(output.outputs[0].token_ids)
        now = time.perf_counter()
        if not begin and len(lengths) == len(prompts):
            begin, first = now, sum(lengths.values())
        elif begin and max(lengths.values()) == tokens:
            rate = (sum(lengths.values()) - first) / (now - begin)
            break
    while engine.has_unfinished_requests():
        engine.step()
    return rate


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # where vLLM logs
    options = json.loads(sys.argv[1])
    os.environ["TTS_KERNELS_VLLM"] = str(int(options["arm"] != "vLLM"))
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    from vllm.plugins import load_general_plugins

    load_general_plugins()
    if options["arm"] == "stub":
        sys.modules.setdefault("vllm_arm", sys.modules["__main__"])
        register_backend(AttentionBackendEnum.CPU_ATTN, "vllm_arm.StubBackend")
    llm = vllm.LLM(
        options["model"],
        dtype="bfloat16",
        skip_tokenizer_init=True,
        enforce_eager=True,
        max_model_len=options["context"],
        max_num_seqs=options["branches"],
        kv_cache_memory_bytes=options["kv_bytes"],
        disable_log_stats=True,
        worker_extension_cls="tts_kernels.integrations.vllm.report.WorkerReport",
    )
    report = llm.collective_rpc("attention_report")[0]
    threads = torch.get_num_threads()
    print(
        json.dumps({"vllm": vllm.__version__, "report": report, "threads": threads}), file=answers, flush=True
    )
    for line in sys.stdin:
        rate = decode_rate(llm, **json.loads(line))
        print(json.dumps(rate), file=answers, flush=True)


if __name__ == "__main__":
    main()
