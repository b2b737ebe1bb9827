"""MXFP4 (Open Compute Project, Microscaling Formats v1.0), as published for the experts of gpt-oss."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tts_kernels import QuantisedWeight

from .experts import PARTS
from .settings import Settings
from .tensors import FLOATS, SavedTensors

_GROUP = 32  # inputs that share a scale


@dataclass(frozen=True)
class MXFP4:
    """Tensors of all experts of a layer: blocks, scales and biases.

    NAME_blocks is uint8 [experts, rows, inputs / 32, 16], two inputs per byte, the first in its low bits;
    NAME_scales is uint8 [experts, rows, inputs / 32], powers of two; NAME_bias. NAME is gate_up_proj, whose
    rows alternate between gate and up, or down_proj.
    """

    @classmethod
    def of(cls, settings: Settings) -> MXFP4:
        return cls()

    def modules(self, tensors: SavedTensors) -> list[str]:
        return [
            f"{name}.{index}.{part}_proj"
            for name in tensors.marked("gate_up_proj_blocks")
            for index in range(tensors.shape(f"{name}.gate_up_proj_blocks")[0])
            for part in PARTS
        ]

    def bits_of(self, name: str) -> int:
        return 4

    def kind_of(self, name: str) -> str:
        return "MXFP4"

    def read(
        self, tensors: SavedTensors, name: str, outputs: int, inputs: int, bias: Tensor | None
    ) -> QuantisedWeight:
        experts, number, leaf = name.rsplit(".", 2)
        index, part = int(number), leaf.removesuffix("_proj")
        stem = f"{experts}.{'down' if part == 'down' else 'gate_up'}_proj"
        every = slice(None) if part == "down" else slice(PARTS.index(part), None, 2)
        tensors.groups(name, inputs, _GROUP)
        count = tensors.shape(f"{stem}_blocks")[0]
        shape = [count, outputs if part == "down" else 2 * outputs, inputs // _GROUP]
        blocks = tensors.take_entry(f"{stem}_blocks", index, [*shape, _GROUP // 2], torch.uint8)[every]
        scales = tensors.take_entry(f"{stem}_scales", index, shape, torch.uint8)[every]
        own = tensors.take_entry(f"{stem}_bias", index, shape[:2], *FLOATS)[every]
        return QuantisedWeight.from_gguf("MXFP4", _as_gguf(blocks, scales), own.contiguous())


def _as_gguf(blocks: Tensor, scales: Tensor) -> Tensor:
    """Returns uint8 [rows, groups * 17]: a scale, then inputs 0 to 15 in low bits, 16 to 31 in high."""
    values = torch.stack((blocks & 15, blocks >> 4), -1).flatten(-2)
    halves = values[..., : _GROUP // 2] | values[..., _GROUP // 2 :] << 4
    return torch.cat((scales[..., None], halves), -1).flatten(1)
