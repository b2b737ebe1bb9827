"""Random quantised weights, blocks of GGUF tensors and groups, and their values by definition."""

from __future__ import annotations

from dataclasses import dataclass, replace

import gguf
import numpy as np
import torch
from torch import Tensor

from tts_kernels import QuantisedWeight

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


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True)
class Groups:
    """Arguments of `QuantisedWeight.from_groups`, with weights of some units."""

    numbers: Tensor
    scales: Tensor
    zeros: Tensor | int
    bits: int
    group_of: Tensor | None = None

    @classmethod
    def random(
        cls,
        bits: int,
        outputs: int,
        inputs: int,
        group: int,
        dtype: torch.dtype,
        zeros: bool,
        seed: int = 0,
    ) -> Groups:
        """zeros: one for each group, else the middle."""
        rng = np.random.default_rng(seed)
        numbers = torch.from_numpy(rng.integers(0, 1 << bits, (outputs, inputs), dtype=np.uint8))
        scales = normal(seed, outputs, inputs // group).mul(2.0**-bits).to(dtype)
        each = torch.from_numpy(rng.integers(0, 1 << bits, scales.shape, dtype=np.uint8))
        return cls(numbers, scales, each if zeros else 1 << (bits - 1), bits)

    def packed(self, bias: Tensor | None = None) -> QuantisedWeight:
        return QuantisedWeight.from_groups(
            self.numbers, self.scales, self.zeros, bits=self.bits, bias=bias, group_of=self.group_of
        )

    def shuffled(self, seed: int) -> Groups:
        """With groups of any inputs, as many in each."""
        places = torch.randperm(self.numbers.shape[1], generator=torch.Generator().manual_seed(seed))
        return replace(self, group_of=self._neighbours()[places])

    def _neighbours(self) -> Tensor:
        inputs, groups = self.numbers.shape[1], self.scales.shape[1]
        return torch.arange(inputs) // (inputs // groups)

    def weights(self) -> Tensor:
        """scale * (u - zero), float64: exact."""
        group_of = self._neighbours() if self.group_of is None else self.group_of
        zeros = self.zeros.double()[:, group_of] if isinstance(self.zeros, Tensor) else self.zeros
        return (self.numbers.double() - zeros) * self.scales.double()[:, group_of]


def assert_layer_close(out: Tensor, expected: Tensor, x: Tensor, *weights: Tensor) -> None:
    """Sums of float32 over groups: some 2^-24 of all terms' sizes for each of them."""
    sizes = x.double().abs() @ weights[0].double().abs().T
    for other in weights[1:]:
        sizes = sizes * (x.double().abs() @ other.double().abs().T) + sizes
    bound = 1e-6 * (1 + x.shape[1] / 256) * (1 + sizes)
    assert ((out.double() - expected).abs() <= bound).all()
