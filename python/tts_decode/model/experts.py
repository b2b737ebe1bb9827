"""A mixture of experts over packed weights, for modules that replace transformers' own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tts_kernels import PackedWeight, Weight, packed_linear


def clamped_swiglu(gate: Tensor, up: Tensor, alpha: float, limit: float) -> Tensor:
    """The activation of gpt-oss, `tts_kernels.Experts.clamp`."""
    gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    return (up + 1) * (gate * torch.sigmoid(alpha * gate))


class Expert(NamedTuple):
    """gate_up: of gate and of up, or one weight with the outputs of both, concatenated."""

    gate_up: tuple[Weight, ...]
    down: Weight

    def widened(self) -> Expert:
        """Returns the same expert in float32, if its floats are packed."""
        gate_up = tuple(one.widened() if isinstance(one, PackedWeight) else one for one in self.gate_up)
        return Expert(gate_up, self.down.widened() if isinstance(self.down, PackedWeight) else self.down)


def sum_of_experts(
    experts: Sequence[Expert],
    inner: Callable[[Tensor, Tensor], Tensor],
    states: Tensor,
    chosen: Tensor,
    shares: Tensor,
    *,
    multiply: Callable[[Tensor, Any], Tensor] = packed_linear,
) -> Tensor:
    """Returns the sum of share * down(inner(gate(x), up(x))) over the experts of each token.

    states: [T, hidden]. chosen: int64 [T, k], experts. shares: float [T, k]. multiply: multiplies rows by a
    weight. Returns [T, hidden] in the dtype of states.
    """
    made = torch.zeros(states.shape)
    for index in sorted(set(chosen.flatten().tolist())):
        expert = experts[index]
        tokens, places = torch.where(chosen == index)
        rows = states[tokens]
        gate, up = torch.cat([multiply(rows, weight) for weight in expert.gate_up], -1).chunk(2, -1)
        outputs = multiply(inner(gate, up), expert.down) * shares[tokens, places, None].float()
        made.index_add_(0, tokens, outputs)
    return made.to(states.dtype)
