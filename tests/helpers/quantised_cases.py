"""Random blocks of each kind of GGUF tensor, and what gguf reads in them."""

from __future__ import annotations

import gguf
import numpy as np
import torch
from torch import Tensor

# Kind -> bytes of a block where a float16 begins.
HALVES = {
    "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q8_0": (0,), "IQ4_NL": (0,),
    "Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "IQ4_XS": (0,),
}  # fmt: skip
KINDS = (*HALVES, "MXFP4")
TWO_LEVEL = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS")


def block_inputs(kind: str) -> int:
    return gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]][0]


def random_blocks(kind: str, outputs: int, inputs: int, seed: int = 0) -> Tensor:
    """uint8 [outputs, bytes]: any bits, with scales of normal size, so that weights are some units."""
    rng = np.random.default_rng(seed)
    each, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    blocks = rng.integers(0, 256, (outputs, inputs // each, size), dtype=np.uint8)
    for at in HALVES.get(kind, ()):
        scale = rng.standard_normal((*blocks.shape[:2], 1)) * (0.001 if kind in TWO_LEVEL else 0.03)
        blocks[..., at : at + 2] = scale.astype(np.float16).view(np.uint8)
    if kind == "MXFP4":
        blocks[..., 0] = rng.integers(118, 126, blocks.shape[:2])
    return torch.from_numpy(blocks.reshape(outputs, -1))


def as_gguf_reads(kind: str, blocks: Tensor) -> Tensor:
    """float32 [outputs, inputs]."""
    return torch.from_numpy(gguf.dequantize(blocks.numpy(), gguf.GGMLQuantizationType[kind]))
