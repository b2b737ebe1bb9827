"""Float experts of gpt-oss in panels: the parameters have [inputs, outputs], gate and up alternating."""

from __future__ import annotations

import torch
from torch import Tensor

from tts_kernels import PackedWeight

from .experts import Expert, clamped_swiglu
from .packed_modules import PackedExperts, is_alone

_LINE = 64  # bytes: panels begin at multiples of it


class PackedClampedExperts(PackedExperts):
    """All experts of a layer, with biases. Panels have the outputs of gate, then those of up."""

    @staticmethod
    def pack_part(name: str, weight: Tensor) -> Tensor:
        """weight: [experts, inputs, outputs], outputs a multiple of 16."""
        first = PackedWeight.pack(_rows(name, weight[0])).panels
        shape = len(weight) * len(first), *first.shape[1:]
        reused = is_alone(weight) and weight.is_contiguous() and weight.data_ptr() % _LINE == 0
        panels = weight.view(shape) if reused else weight.new_empty(shape)
        for index, room in enumerate(panels.chunk(len(weight))):
            room.copy_(PackedWeight.pack(_rows(name, weight[index])).panels if index else first)
        return panels

    def packed(self, name: str) -> PackedWeight:
        experts, _, outputs = self.parts[name].shape
        return PackedWeight(self.panels(name), None, experts * outputs)

    def unpacked(self, name: str) -> Tensor:
        made = self.panels(name).new_empty(self.parts[name].shape)
        for index, one in enumerate(self._split(name)):
            _rows_into(name, one.unpacked(), made[index])
        return made

    def _experts(self) -> list[Expert]:
        gate_up, down = self._split("gate_up_proj"), self._split("down_proj")
        biases = _in_order("gate_up_proj", self.gate_up_proj_bias.detach()), self.down_proj_bias.detach()
        return [
            Expert((both.with_bias(first),), own.with_bias(second))
            for both, own, first, second in zip(gate_up, down, *biases, strict=True)
        ]

    def _split(self, name: str) -> list[PackedWeight]:
        count, _, outputs = self.parts[name].shape
        return [PackedWeight(panels, None, outputs) for panels in self.panels(name).chunk(count)]

    def _inner(self, gate: Tensor, up: Tensor) -> Tensor:
        return clamped_swiglu(gate, up, self.alpha, self.limit)


def _in_order(name: str, outputs: Tensor) -> Tensor:
    """[..., outputs]: of gate, then of up, where they take turns."""
    if name != "gate_up_proj":
        return outputs
    return torch.cat((outputs[..., ::2], outputs[..., 1::2]), -1)


def _rows(name: str, weight: Tensor) -> Tensor:
    """A copy [outputs, inputs] of an expert's weight [inputs, outputs]."""
    return _in_order(name, weight).T.contiguous()


def _rows_into(name: str, rows: Tensor, weight: Tensor) -> None:
    """The other way of `_rows`."""
    if name != "gate_up_proj":
        weight.copy_(rows.T)
        return
    for place, half in enumerate(rows.chunk(2)):
        weight[:, place::2] = half.T
