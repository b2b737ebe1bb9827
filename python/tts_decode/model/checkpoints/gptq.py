"""GPTQ (Frantar et al., arXiv 2210.17323), as saved by AutoGPTQ and GPTQModel."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tts_kernels import QuantisedWeight

from ...errors import ModelLoadError
from .packing import unpacked
from .settings import INSTEAD, Settings
from .tensors import FLOATS, SavedTensors


@dataclass(frozen=True)
class GPTQ:
    """GPTQ's tensors: scales [groups, outputs], and words.

    Words of qweight int32 [inputs x bits / 32, outputs] hold numbers of several inputs, words of qzeros
    [groups, outputs x bits / 32] the zero points of several outputs.

    Attributes:
        bits: 4 or 8.
        group: inputs of a group; -1: all.
        less_one: zero points are saved minus one (format gptq; gptq_v2 saves them unchanged).
        symmetric: all zero points are the middle.
        act_order: g_idx has each input's group; otherwise it may be missing if groups are consecutive.
    """

    bits: int
    group: int
    less_one: bool
    symmetric: bool
    act_order: bool

    @classmethod
    def of(cls, settings: Settings) -> GPTQ:
        for name, what in {
            "dynamic": "settings that differ from module to module",
            "is_marlin_format": "the layout of Marlin",
            "use_marlin": "the layout of Marlin",
            "adapter": "an adapter beside the weights",
            "rotation": "rotated activations",
        }.items():
            settings.require_absent(name, what)
        settings.one_of("pack_dtype", "int32", default="int32")
        field = "checkpoint_format" if "checkpoint_format" in settings else "format"
        saved = settings.one_of(field, "gptq", "gptq_v2", default="gptq")
        return cls(
            settings.one_of("bits", 4, 8),
            settings.integer("group_size", -1),
            saved == "gptq",
            settings.one_of("sym", True, False, default=False),
            settings.one_of("desc_act", True, False, default=False),
        )

    def modules(self, tensors: SavedTensors) -> list[str]:
        return tensors.marked("qweight")

    def bits_of(self, name: str) -> int:
        return self.bits

    def kind_of(self, name: str) -> str:
        return f"GPTQ, {self.bits} bits"

    def read(
        self, tensors: SavedTensors, name: str, outputs: int, inputs: int, bias: Tensor | None
    ) -> QuantisedWeight:
        group = inputs if self.group == -1 else self.group
        groups = tensors.groups(name, inputs, group)
        words = tensors.take(f"{name}.qweight", (inputs * self.bits // 32, outputs), torch.int32)
        packed = tensors.take(f"{name}.qzeros", (groups, outputs * self.bits // 32), torch.int32)
        scales = tensors.take(f"{name}.scales", (groups, outputs), *FLOATS)
        group_of = None
        if self.act_order or f"{name}.g_idx" in tensors:
            group_of = group_of_inputs(tensors, f"{name}.g_idx", inputs, group)
        # The one is added to whole words: GPTQModel saves a zero point of 0 with a borrow from the next.
        ones = 0x11111111 if self.bits == 4 else 0x01010101
        zeros = unpacked(packed + ones if self.less_one else packed, self.bits).T
        middle = 1 << (self.bits - 1)
        if self.symmetric and not (zeros == middle).all():
            raise tensors.damaged(f"{name}.qzeros: got others than {middle}, expected none as sym is true")
        numbers = unpacked(words.T, self.bits)
        return QuantisedWeight.from_groups(
            numbers,
            scales.T,
            middle if self.symmetric else zeros,
            bits=self.bits,
            bias=bias,
            group_of=group_of,
        )


def group_of_inputs(tensors: SavedTensors, name: str, inputs: int, group: int) -> Tensor:
    """Returns each input's group, int32 or int64 [inputs].

    Raises ModelLoadError unless all groups have `group` inputs.
    """
    found = tensors.take(name, (inputs,), torch.int32, torch.int64)
    groups = inputs // group
    if int(found.min()) < 0 or int(found.max()) >= groups:
        raise tensors.damaged(f"{name}: got a group out of range, expected 0 to {groups - 1}")
    sizes = torch.bincount(found, minlength=groups)
    if (sizes != group).any():
        raise ModelLoadError(
            f"model: {tensors.folder}: {name} makes groups of {int(sizes.min())} to {int(sizes.max())} "
            f"inputs, which is not served, expected {group} in each; {INSTEAD}"
        )
    return found
