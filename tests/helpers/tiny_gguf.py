"""GGUF files of random models with a byte-level tokenizer: 300 kB, made in milliseconds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

gguf = pytest.importorskip("gguf")  # a machine that only runs the GPU tests may lack it

HIDDEN, HEADS, KV_HEADS, HEAD_DIM, INNER, LAYERS = 64, 2, 1, 32, 96, 2

# The 256 characters that byte-level BPE maps bytes to, three words, control tokens.
_PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
_LETTERS = [chr(byte) for byte in _PRINTABLE] + [chr(256 + i) for i in range(256 - len(_PRINTABLE))]
TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *_LETTERS, "he", "Ye", "Yes", "No"]
TOKENIZER: dict[str, Any] = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.tokens": TOKENS,
    "tokenizer.ggml.token_type": [int(gguf.TokenType.CONTROL)] * 3
    + [int(gguf.TokenType.NORMAL)] * (len(TOKENS) - 3),
    "tokenizer.ggml.merges": ["h e", "Y e", "Ye s", "N o"],
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
    "tokenizer.ggml.unknown_token_id": 0,
    "tokenizer.ggml.padding_token_id": 2,
}
PAIRS = HEAD_DIM // 2  # of a head's dimensions, which rotate together
LENGTH = 90
IDS = np.random.default_rng(3).integers(3, len(TOKENS), LENGTH)
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


def write_tiny_gguf(
    path: Path,
    seed: int = 0,
    keys: Mapping[str, Any] | None = None,
    tensors: Mapping[str, np.ndarray | None] | None = None,
    scale: float = 0.05,
) -> dict[str, np.ndarray]:
    """Writes a Llama with 2 layers and returns its tensors; equal arguments give equal bytes.

    keys, tensors: more of them, or others in their places; None leaves one out. scale: of the random weights.
    """
    made = tiny_tensors(seed, scale) | dict(tensors or {})
    kept = {name: values for name, values in made.items() if values is not None}
    write_gguf(path, "llama", KEYS | TOKENIZER | dict(keys or {}), kept)
    return kept


def tiny_tensors(seed: int, scale: float) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    shapes = llama_shapes(HIDDEN, HEADS, KV_HEADS, HEAD_DIM, INNER, LAYERS)
    return {
        name: (random.standard_normal(shape) * scale).astype(np.float32) for name, shape in shapes.items()
    }


def llama_shapes(
    hidden: int, heads: int, kv_heads: int, head_dim: int, inner: int, layers: int
) -> dict[str, tuple[int, ...]]:
    """Of the tensors of a Llama with a tied head, by their names in GGUF."""
    made: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (len(TOKENS), hidden),
        "output_norm.weight": (hidden,),
    }
    for layer in range(layers):
        block = f"blk.{layer}"
        made |= {
            f"{block}.attn_norm.weight": (hidden,),
            f"{block}.ffn_norm.weight": (hidden,),
            f"{block}.attn_q.weight": (heads * head_dim, hidden),
            f"{block}.attn_k.weight": (kv_heads * head_dim, hidden),
            f"{block}.attn_v.weight": (kv_heads * head_dim, hidden),
            f"{block}.attn_output.weight": (hidden, heads * head_dim),
            f"{block}.ffn_gate.weight": (inner, hidden),
            f"{block}.ffn_up.weight": (inner, hidden),
            f"{block}.ffn_down.weight": (hidden, inner),
        }
    return made


def write_gguf(
    path: Path,
    architecture: str,
    keys: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
    kind: str = "F32",
) -> None:
    """keys: with their namespaces; Python types become bool, uint32, float32, string and arrays of them.

    kind: in which weights are written, but for norms, routers and those whose rows are no blocks of 32.
    """
    writer = gguf.GGUFWriter(path, architecture)
    add_keys(writer, keys)
    for name, values in tensors.items():
        values = np.ascontiguousarray(values, dtype=np.float32)
        plain = (
            name.endswith(".bias")
            or values.ndim < 2
            or values.shape[-1] % 32
            or "_inp" in name
            or "_norm" in name
        )
        stored = gguf.GGMLQuantizationType["F32" if plain else kind]
        writer.add_tensor(name, gguf.quantize(values, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_keys(writer: gguf.GGUFWriter, keys: Mapping[str, Any]) -> None:
    """As `write_gguf` takes them."""
    kinds = {
        bool: gguf.GGUFValueType.BOOL,
        int: gguf.GGUFValueType.UINT32,
        float: gguf.GGUFValueType.FLOAT32,
        str: gguf.GGUFValueType.STRING,
        list: gguf.GGUFValueType.ARRAY,
    }
    for key, value in keys.items():
        if value is not None:
            inner = kinds[type(value[0])] if isinstance(value, list) else None
            kind = gguf.GGUFValueType.INT32 if type(value) is int and value < 0 else kinds[type(value)]
            writer.add_key_value(key, value, kind, inner)
