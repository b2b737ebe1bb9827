"""Weights of a linear layer in the order in which the CPU kernel reads them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

PANEL = 16  # outputs of a panel


@dataclass(frozen=True)
class PackedWeight:
    """What `packed_linear` multiplies with; made by `pack` or `pack_gated`.

    Attributes:
        panels: float32 [P, inputs, 16] or bfloat16 [P, inputs / 2, 16, 2]; zeros fill the last panel up.
        bias: float32 [16 P], or None.
        outputs: of the layer.
        gated: panels of gate and up take turns, and an output is silu(gate) * up.
    """

    panels: Tensor
    bias: Tensor | None
    outputs: int
    gated: bool = False

    @property
    def inputs(self) -> int:
        return self.panels.shape[1] * (2 if self.panels.dtype == torch.bfloat16 else 1)

    @property
    def columns(self) -> int:
        """Outputs with those that fill the last panel up."""
        return len(self.panels) * PANEL // (2 if self.gated else 1)

    @classmethod
    def pack(cls, weight: Tensor, bias: Tensor | None = None) -> PackedWeight:
        """Copies a weight [outputs, inputs] of float32 or bfloat16, and a bias [outputs].

        Raises:
            TypeError, ValueError: another dtype or shape; an odd number of inputs in bfloat16.
        """
        _check(weight, bias)
        return cls(_panels(weight), None if bias is None else _padded(bias.float()), len(weight))

    @classmethod
    def pack_gated(cls, gate: Tensor, up: Tensor) -> PackedWeight:
        """Copies the weights [outputs, inputs] of a SwiGLU layer's two projections (Shazeer,
        arXiv 2002.05202)."""
        _check(gate, None)
        _check(up, None)
        if gate.shape != up.shape or gate.dtype != up.dtype:
            raise ValueError(
                f"gate, up: got {gate.dtype} {list(gate.shape)} and {up.dtype} {list(up.shape)}, expected "
                "the same"
            )
        return cls(torch.stack([_panels(gate), _panels(up)], 1).flatten(0, 1), None, len(gate), gated=True)


def _panels(weight: Tensor) -> Tensor:
    padded = _padded(weight)
    if weight.dtype == torch.bfloat16:
        return padded.view(len(padded) // PANEL, PANEL, -1, 2).transpose(1, 2).contiguous()
    return padded.view(len(padded) // PANEL, PANEL, -1).transpose(1, 2).contiguous()


def _padded(rows: Tensor) -> Tensor:
    """With zeros up to whole panels."""
    short = -len(rows) % PANEL
    return torch.cat([rows, rows.new_zeros(short, *rows.shape[1:])]) if short else rows.contiguous()


def _check(weight: Tensor, bias: Tensor | None) -> None:
    if weight.dtype not in (torch.float32, torch.bfloat16):
        raise TypeError(f"weight: got {weight.dtype}, expected torch.float32 or torch.bfloat16")
    if weight.dim() != 2 or not weight.numel() or not weight.is_cpu:
        raise ValueError(
            f"weight: got shape {list(weight.shape)} on {weight.device}, expected [outputs, inputs] on cpu"
        )
    if weight.dtype == torch.bfloat16 and weight.shape[1] % 2:
        raise ValueError(f"weight: got {weight.shape[1]} inputs, expected an even number in bfloat16")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias: got shape {list(bias.shape)}, expected [{len(weight)}], the outputs")
