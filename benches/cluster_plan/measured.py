"""What is measured on this machine: steps of trees beside the plan's law, and what the host does in a step."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from tokenizers import Tokenizer, models
from tts_decode import TreeDecoder
from tts_decode.bench.decode import measure_decode
from tts_decode.cost import Machine, ModelShape, search_cost
from tts_decode.model.loading import load_model
from tts_decode.model.shape import shape_of_config

from benches.cluster_plan.law import Cluster, Group

Record = dict[str, Any]

WIDTHS, CONTEXTS = (16, 64), (512, 2048)
TOKENS, ROUNDS = 6, 5
HOST_ROWS, HOST_PROMPT = (256, 1024), 1106  # the prompt of the recorded trees
ON_HOST = "Python and plan"  # the part of a step that stays on the host of a GPU
_VOCAB = 260


def check() -> Record:
    """Medians of the default model's steps, and the law's for a group of one such machine."""
    model, tokenizer = load_model()
    decoder = TreeDecoder(model, tokenizer, kv_bytes=1 << 30)
    shape = shape_of_config(model.config, model.dtype)
    rows = []
    for context in CONTEXTS:
        _, machine, found = measure_decode(
            decoder, shape, prompt=context, branches=WIDTHS, tokens=TOKENS, rounds=ROUNDS
        )
        rows += [
            {
                "context": context,
                "branches": times.branches,
                "measured": times.step.median,
                "quartiles": [times.step.low, times.step.high],
                "predicted": predicted(machine, shape, context, times.branches),
                "flops": machine.flops,
                "bandwidth": machine.bandwidth,
            }
            for times in found
        ]
    return {"dtype": str(model.dtype).removeprefix("torch."), "rows": rows}


def predicted(machine: Machine, shape: ModelShape, context: int, branches: int) -> float:
    """Seconds of a step; memory and links of one machine do not matter."""
    alone = Cluster(machine, memory=1, usable=1, link=1, latency=0, host=1, node=1)
    cost = search_cost(shape, prompt=context, branches=branches, generated=TOKENS + 1)
    return Group(alone, shape, 1).terms(cost.decode, branches * cost.steps).total / cost.steps


def host() -> list[Record]:
    """Of steps of a model so small that the host's part shows: seconds that are no operator's."""
    torch.manual_seed(0)
    config = hf.LlamaConfig(
        vocab_size=_VOCAB,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=64,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
    )
    model = hf.LlamaForCausalLM(config).eval()
    tokenizer = hf.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({str(i): i for i in range(_VOCAB)}, unk_token="0"))
    )
    decoder = TreeDecoder(model, tokenizer, kv_bytes=1 << 27, max_batch_tokens=max(HOST_ROWS))
    shape = shape_of_config(config, torch.float32)
    _, _, found = measure_decode(
        decoder, shape, prompt=HOST_PROMPT, branches=HOST_ROWS, tokens=TOKENS, rounds=ROUNDS
    )
    return [
        {
            "rows": times.branches,
            "step": times.step.median,
            "quartiles": [times.step.low, times.step.high],
            "host": times.shares[ON_HOST] * times.step.median,
        }
        for times in found
    ]


def machine_name() -> str:
    file = Path("/proc/cpuinfo")
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} virtual cores"
