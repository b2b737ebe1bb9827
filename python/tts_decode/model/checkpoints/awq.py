"""AWQ (Lin et al., arXiv 2306.00978), as saved by AutoAWQ and GPTQModel in the format `gemm`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tts_kernels import QuantisedWeight

from .packing import unpacked
from .settings import Settings
from .tensors import FLOATS, SavedTensors

_BITS = 4
_PLACES = [0, 4, 1, 5, 2, 6, 3, 7]  # in a word, of eight outputs in their order


@dataclass(frozen=True)
class AWQ:
    """AWQ's tensors: scales [groups, outputs], and words that hold eight outputs each.

    The words are qweight int32 [inputs, outputs / 8] and qzeros [groups, outputs / 8].

    Attributes:
        group: inputs of a group; -1: all.
    """

    group: int

    @classmethod
    def of(cls, settings: Settings) -> AWQ:
        settings.one_of("bits", _BITS)
        settings.one_of("version" if "version" in settings else "format", "gemm", default="gemm")
        settings.one_of("zero_point", True, default=True)
        return cls(settings.integer("group_size", 128))

    def modules(self, tensors: SavedTensors) -> list[str]:
        return tensors.marked("qweight")

    def bits_of(self, name: str) -> int:
        return _BITS

    def kind_of(self, name: str) -> str:
        return f"AWQ, {_BITS} bits"

    def read(
        self, tensors: SavedTensors, name: str, outputs: int, inputs: int, bias: Tensor | None
    ) -> QuantisedWeight:
        groups = tensors.groups(name, inputs, inputs if self.group == -1 else self.group)
        words = tensors.take(f"{name}.qweight", (inputs, outputs * _BITS // 32), torch.int32)
        zeros = tensors.take(f"{name}.qzeros", (groups, outputs * _BITS // 32), torch.int32)
        scales = tensors.take(f"{name}.scales", (groups, outputs), *FLOATS)
        return QuantisedWeight.from_groups(
            _in_order(words), scales.T, _in_order(zeros), bits=_BITS, bias=bias
        )


def _in_order(words: Tensor) -> Tensor:
    """Converts int32 [n, outputs / 8] to uint8 [outputs, n]."""
    return unpacked(words, _BITS).view(len(words), -1, 8)[..., _PLACES].flatten(1).T
