"""compressed-tensors, as llm-compressor saves integers with it: packed in words, or as int8."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tts_kernels import QuantisedWeight

from ...errors import ModelLoadError
from .gptq import group_of_inputs
from .packing import unpacked
from .settings import INSTEAD, Settings
from .tensors import FLOATS, SavedTensors

_ORDERED = ("group", "dynamic", True)  # of `actorder`: groups are of any inputs


@dataclass(frozen=True)
class CompressedTensors:
    """Signed integers with scales and zero points.

    They are `weight` int8 [outputs, inputs], or words of `weight_packed` int32 [outputs, inputs x bits / 32]
    that hold them plus half of their range; weight_scale and weight_zero_point are [outputs, groups], or [1]
    for all weights.

    Attributes:
        bits: 4 or 8.
        group: inputs of a group; -1: all.
        whole: whether one scale is for all weights.
        symmetric: whether there are no zero points.
        packed: whether integers are in words.
        act_order: weight_g_idx has each input's group; otherwise it may be missing if groups are consecutive.
    """

    bits: int
    group: int
    whole: bool
    symmetric: bool
    packed: bool
    act_order: bool

    @classmethod
    def of(cls, settings: Settings) -> CompressedTensors:
        settings.require_absent("kv_cache_scheme", "a quantised KV cache")
        settings.require_absent("transform_config", "transformed activations")
        if "sparsity_config" in settings:
            settings.under("sparsity_config").one_of("format", "dense", default="dense")
        found = {cls._of_group(settings, group) for group in settings.objects("config_groups")}
        if len(found) > 1:
            raise ModelLoadError(
                f"model: {settings.source}: {settings.path}.config_groups quantise modules in several ways, "
                f"which is not served; {INSTEAD}"
            )
        return found.pop()

    @classmethod
    def _of_group(cls, settings: Settings, group: Settings) -> CompressedTensors:
        saved = (group if "format" in group else settings).one_of(
            "format", "pack-quantized", "int-quantized", "naive-quantized"
        )
        group.require_absent("output_activations", "quantised outputs")
        if "input_activations" in group:
            # int8 that each token finds its scale for: every product beside quantised weights has that, by
            # groups of 32 inputs.
            inputs = group.under("input_activations")
            inputs.one_of("num_bits", 8, default=8)
            inputs.one_of("type", "int", default="int")
            inputs.one_of("dynamic", True, default=False)
        weights = group.under("weights")
        weights.one_of("type", "int", default="int")
        weights.one_of("dynamic", False, default=False)
        size = weights.integer("group_size", 0)
        implied = "group" if size > 0 else "channel" if size == -1 else "tensor"
        strategy = weights.one_of("strategy", "tensor", "channel", "group", default=implied)
        return cls(
            weights.one_of("num_bits", 4, 8, default=8),
            size if strategy == "group" else -1,
            strategy == "tensor",
            weights.one_of("symmetric", True, False, default=True),
            saved == "pack-quantized",
            # "weight": the order in which weights were rounded, which leaves no trace in the file.
            weights.one_of("actorder", "weight", "static", *_ORDERED, False, default=False) in _ORDERED,
        )

    def modules(self, tensors: SavedTensors) -> list[str]:
        return tensors.marked("weight_packed" if self.packed else "weight_scale")

    def bits_of(self, name: str) -> int:
        return self.bits

    def kind_of(self, name: str) -> str:
        return f"compressed-tensors, {self.bits} bits"

    def read(
        self, tensors: SavedTensors, name: str, outputs: int, inputs: int, bias: Tensor | None
    ) -> QuantisedWeight:
        group = inputs if self.group == -1 else self.group
        groups = tensors.groups(name, inputs, group)
        numbers = self._numbers(tensors, name, outputs, inputs)
        shape = [1] if self.whole else [outputs, groups]
        scales = tensors.take(f"{name}.weight_scale", shape, *FLOATS).expand(outputs, groups)
        group_of = self._group_of(tensors, f"{name}.weight_g_idx", inputs, group)
        zeros = self._zeros(tensors, f"{name}.weight_zero_point", outputs, shape)
        if isinstance(zeros, Tensor):
            zeros = zeros.expand(outputs, groups)
        return QuantisedWeight.from_groups(
            numbers, scales, zeros, bits=self.bits, bias=bias, group_of=group_of
        )

    def _group_of(self, tensors: SavedTensors, name: str, inputs: int, group: int) -> Tensor | None:
        """Returns each input's group; None for consecutive groups, saved as all -1 or not at all."""
        if name not in tensors and not self.act_order:
            return None
        found = tensors.take(name, (inputs,), torch.int32, torch.int64)
        if (found == -1).all() and not self.act_order:
            return None
        return group_of_inputs(tensors, name, inputs, group)

    @property
    def _middle(self) -> int:
        return 1 << (self.bits - 1)

    def _numbers(self, tensors: SavedTensors, name: str, outputs: int, inputs: int) -> Tensor:
        if not self.packed:
            return self._above(tensors, f"{name}.weight", [outputs, inputs])
        shape = tensors.take(f"{name}.weight_shape", [2], torch.int64, torch.int32).tolist()
        if shape != [outputs, inputs]:
            raise tensors.damaged(f"{name}.weight_shape: got {shape}, expected {[outputs, inputs]}")
        words = tensors.take(f"{name}.weight_packed", [outputs, self._words(inputs)], torch.int32)
        return unpacked(words, self.bits)[:, :inputs]

    def _zeros(self, tensors: SavedTensors, name: str, outputs: int, shape: list[int]) -> Tensor | int:
        """Returns uint8 of this shape, or one zero point for all."""
        if not self.symmetric and self.packed and not self.whole:
            words = tensors.take(name, [self._words(outputs), shape[1]], torch.int32)
            return unpacked(words.T, self.bits)[:, :outputs].T
        if not self.symmetric:
            return self._above(tensors, name, shape)
        if name in tensors and not (self._above(tensors, name, shape) == self._middle).all():
            raise tensors.damaged(f"{name}: got others than 0, expected none as symmetric is true")
        return self._middle

    def _words(self, count: int) -> int:
        return -(-count * self.bits // 32)

    def _above(self, tensors: SavedTensors, name: str, shape: list[int]) -> Tensor:
        """Returns int8 plus half of the range, as uint8."""
        signed = tensors.take(name, shape, torch.int8)
        if self.bits == 4 and not ((signed >= -8) & (signed < 8)).all():
            raise tensors.damaged(f"{name}: got a number out of range, expected -8 to 7")
        return (signed.to(torch.int16) + self._middle).to(torch.uint8)
