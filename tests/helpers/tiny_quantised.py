"""GGUF files of tiny random models with quantised matrices, of one kind or several."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from quantised_cases import HALVES, as_gguf_reads, block_inputs, random_blocks
from tiny_gguf import TOKENIZER, TOKENS, add_keys, gguf, llama_shapes

HIDDEN, HEADS, KV_HEADS, HEAD_DIM, INNER, LAYERS = 256, 4, 2, 64, 512, 3
# As the files of llama.cpp mix them, and floats among them.
MIXED = {
    "token_embd": "Q6_K",
    "attn_q": "Q4_K",
    "attn_k": "Q4_0",
    "attn_v": "Q6_K",
    "attn_output": "Q5_K",
    "ffn_gate": "Q8_0",
    "ffn_up": "F16",
    "ffn_down": "Q5_1",
}
KEYS: dict[str, Any] = {
    "llama.context_length": 512,
    "llama.embedding_length": HIDDEN,
    "llama.block_count": LAYERS,
    "llama.feed_forward_length": INNER,
    "llama.attention.head_count": HEADS,
    "llama.attention.head_count_kv": KV_HEADS,
    "llama.rope.dimension_count": HEAD_DIM,
    "llama.rope.freq_base": 10000.0,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "llama.vocab_size": len(TOKENS),
}


def shapes(*, tied: bool, biases: bool) -> dict[str, tuple[int, ...]]:
    made = llama_shapes(HIDDEN, HEADS, KV_HEADS, HEAD_DIM, INNER, LAYERS)
    if not tied:
        made["output.weight"] = (len(TOKENS), HIDDEN)
    if biases:
        linears = [name for name in made if name.startswith("blk.") and "norm" not in name]
        made |= {name.replace("weight", "bias"): made[name][:1] for name in linears}
    return made


def write_quantised(
    file: Path,
    kinds: str | Mapping[str, str],
    *,
    tied: bool = True,
    biases: bool = False,
    seed: int = 0,
    architecture: str = "llama",
    keys: Mapping[str, Any] | None = None,
    tensors: Mapping[str, tuple[np.ndarray, str]] | None = None,
) -> None:
    """Writes a Llama. kinds: of all matrices, or by the part of the name behind the block's.

    tensors: others in their places, each with its kind.
    """
    made = {}
    for index, (name, shape) in enumerate(shapes(tied=tied, biases=biases).items()):
        kind = "F32" if len(shape) < 2 else kinds if isinstance(kinds, str) else kinds.get(stem(name), "Q8_0")
        made[name] = random_tensor(kind, shape, 100 * seed + index), kind
    writer = gguf.GGUFWriter(file, architecture)
    add_keys(writer, KEYS | TOKENIZER | dict(keys or {}))
    for name, (values, kind) in (made | dict(tensors or {})).items():
        writer.add_tensor(name, values, raw_dtype=gguf.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def stem(name: str) -> str:
    """`attn_q` of `blk.0.attn_q.weight`."""
    return name.removesuffix(".weight").rpartition(".")[2]


def random_tensor(kind: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """As a file holds it. Matrices have weights of some 0.06 in size, of quantised ones any bits."""
    rng = np.random.default_rng(seed)
    if kind in ("F32", "F16"):
        values = rng.standard_normal(shape) * 0.06 + (1.0 if len(shape) < 2 else 0.0)
        return values.astype(np.float32 if kind == "F32" else np.float16)
    outputs, inputs = shape
    blocks = random_blocks(kind, outputs, inputs, seed)
    factor = 0.06 / float(as_gguf_reads(kind, blocks).square().mean().sqrt())
    each = blocks.numpy().reshape(outputs, inputs // block_inputs(kind), -1)
    for at in HALVES[kind]:
        scales = each[..., at : at + 2].copy().view(np.float16)
        each[..., at : at + 2] = (scales * factor).astype(np.float16).view(np.uint8)
    return each.reshape(outputs, -1)
