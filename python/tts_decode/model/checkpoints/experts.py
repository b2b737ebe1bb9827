"""Mixtures whose files store each expert's matrices, for models of transformers with tensors of all experts.

An expert's linear layers are called `EXPERTS.7.gate_proj` here, after the module that holds them all.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tts_kernels import QuantisedWeight

PARTS = ("gate", "up", "down")
PANEL = 16  # outputs stored together in packed weights
EXPERT_LAYER = re.compile(r"(.+\.experts)\.(\d+)\.(gate|up|down)_proj$")
_MIXTRAL = re.compile(r"(.+\.)block_sparse_moe\.experts\.(\d+)\.(w[123])\.(\w+)$")
_MIXTRAL_PARTS = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}


def names_in_model(names: Iterable[str]) -> dict[str, str]:
    """Maps a file's tensor names to the names used here. Mixtral's are published under other names."""
    found = {}
    for name in names:
        here = name
        if match := _MIXTRAL.match(name):
            here = f"{match[1]}mlp.experts.{match[2]}.{_MIXTRAL_PARTS[match[3]]}.{match[4]}"
        found[name] = here
    if any(name != here for name, here in found.items()):
        for name in found:
            if name.endswith(".block_sparse_moe.gate.weight"):
                found[name] = name.replace(".block_sparse_moe.", ".mlp.")
    return found


class ExpertLayer(NamedTuple):
    """A linear layer of an expert.

    Attributes:
        experts: the name of the module with all of them.
        number: of the expert.
        part: "gate", "up" or "down".
        outputs, inputs: of the layer.
        transposed: the model has [inputs, outputs], with gate and up alternating (gpt-oss).
    """

    experts: str
    number: int
    part: str
    outputs: int
    inputs: int
    transposed: bool

    @classmethod
    def of(cls, model: nn.Module, name: str) -> ExpertLayer | None:
        """Returns the layer of this name; None if the model has no such experts."""
        match = EXPERT_LAYER.match(name)
        module: Any = None if match is None else _module(model, match[1])
        if match is None or not _has_all(module) or int(match[2]) >= len(module.down_proj):
            return None
        return cls.in_module(match[1], module, int(match[2]), match[3])

    @classmethod
    def in_module(cls, experts: str, module: Any, index: int, part: str) -> ExpertLayer:
        """Returns the layer of a module. module: of all experts, of this name."""
        transposed = _alternates(module)
        shape = (module.down_proj if part == "down" else module.gate_up_proj).shape[1:]
        outputs, inputs = reversed(shape) if transposed else shape
        return cls(experts, index, part, outputs // (1 if part == "down" else 2), inputs, transposed)

    @property
    def name(self) -> str:
        return f"{self.experts}.{self.number}.{self.part}_proj"

    @property
    def parameter(self) -> str:
        """The model's parameter that contains this layer's weight."""
        return f"{self.experts}.{'down_proj' if self.part == 'down' else 'gate_up_proj'}"

    def rows_in(self, parameter: Tensor) -> Tensor:
        """Returns the view of its weight [outputs, inputs], or bias [outputs], in all experts' parameter."""
        mine = parameter[self.number]
        if self.transposed and mine.dim() > 1:
            mine = mine.T
        if self.part == "down":
            return mine
        if self.transposed:
            return mine[PARTS.index(self.part) :: 2]
        return mine.chunk(2)[PARTS.index(self.part)]


def layers_of_experts(name: str, module: Any) -> list[ExpertLayer]:
    """Returns the layers of the module of all experts with this name; none if it is no such module."""
    if not _has_all(module):
        return []
    places = itertools.product(range(len(module.down_proj)), PARTS)
    return [ExpertLayer.in_module(name, module, index, part) for index, part in places]


def _has_all(module: Any) -> bool:
    """Whether a module has the weights of all experts in two tensors, in a known order."""
    return _alternates(module) is getattr(module, "is_transposed", False) and all(
        isinstance(getattr(module, name, None), Tensor) and getattr(module, name).dim() == 3
        for name in ("gate_up_proj", "down_proj")
    )


def _alternates(module: Any) -> bool:
    """Whether gate and up alternate, as in gpt-oss."""
    return hasattr(module, "alpha") and hasattr(module, "limit")


def pieces_of(name: str, shape: torch.Size) -> dict[str, int]:
    """Maps the files' tensors that fill a parameter of all experts, in row order, to their row counts.

    Empty for other parameters.
    """
    stem, _, leaf = name.rpartition(".")
    parts = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}.get(leaf)
    if parts is None or len(shape) != 3 or not stem.endswith(".experts"):
        return {}
    rows = shape[1] // len(parts)
    return {f"{stem}.{index}.{part}.weight": rows for index in range(shape[0]) for part in parts}


class Stack:
    """The weights of all experts of a layer, filled one expert at a time.

    Attributes:
        weight: [experts * outputs, inputs].
    """

    weight: QuantisedWeight

    def __init__(self, count: int) -> None:
        self._count = count

    def put(self, index: int, one: QuantisedWeight) -> None:
        """Adds an expert; raises ValueError if its form differs from the first one's."""
        each = len(one.panels)
        if not hasattr(self, "weight"):
            bias = None if one.bias is None else one.bias.new_zeros(self._count * len(one.bias))
            panels = one.panels.new_empty(self._count * each, *one.panels.shape[1:])
            self.weight = QuantisedWeight(panels, bias, one.form, self._count * one.outputs, one.inputs)
        known = self.weight
        if (one.form, one.bias is None) != (known.form, known.bias is None):
            raise ValueError("got weights in several forms, expected all experts of a layer in one")
        known.panels[index * each : (index + 1) * each] = one.panels
        if known.bias is not None and one.bias is not None:
            known.bias[index * len(one.bias) : (index + 1) * len(one.bias)] = one.bias


def incomplete(model: nn.Module, layers: Mapping[str, ExpertLayer]) -> str | None:
    """Returns a layer that is missing although others of the same experts are present."""
    for experts in sorted({layer.experts for layer in layers.values()}):
        for layer in layers_of_experts(experts, model.get_submodule(experts)):
            if layer.name not in layers:
                return layer.name
    return None


def _module(model: nn.Module, name: str) -> Any:
    try:
        return model.get_submodule(name)
    except AttributeError:
        return None
