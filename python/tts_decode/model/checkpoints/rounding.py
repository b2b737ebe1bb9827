"""Float checkpoints whose linear layers are rounded to 8 or 4 bits during loading."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from tts_kernels import QuantisedWeight

from .experts import EXPERT_LAYER, PANEL, layers_of_experts
from .tensors import FLOATS, SavedTensors

_GROUP = 32  # inputs that share a scale
_HEAD_BITS = 8  # of the logits' layer, even if it is the embedding table
_KEPT = ("gate", "router", "shared_expert_gate")  # they choose experts: few weights with a large effect


@dataclass(frozen=True)
class Rounded:
    """Rounds each linear layer separately; experts too, if the files store them separately.

    An embedding table stays, unless it is also the logits' layer.

    Attributes:
        bits: by the names of modules, and of layers of experts.
    """

    bits: Mapping[str, int]

    @classmethod
    def of(cls, model: Any, bits: int) -> Rounded:
        tied = model.config.tie_word_embeddings
        table, head = model.get_input_embeddings(), model.get_output_embeddings()
        found = {}
        for name, module in model.named_modules():
            if module is (table if tied else head) and _weight_of(module).shape[1] % _GROUP == 0:
                found[name] = _HEAD_BITS
            elif module is not head and _is_rounded(name, module):
                found[name] = bits
            experts = layers_of_experts(name, module)
            if all(layer.inputs % _GROUP == 0 and layer.outputs % PANEL == 0 for layer in experts):
                found |= {layer.name: bits for layer in experts}  # all or none: they share modules
        return cls(found)

    def modules(self, tensors: SavedTensors) -> list[str]:
        return [name for name in self.bits if EXPERT_LAYER.match(name) is None or f"{name}.weight" in tensors]

    def bits_of(self, name: str) -> int:
        return self.bits[name]

    def kind_of(self, name: str) -> str:
        return f"int{self.bits[name]}"

    def read(
        self, tensors: SavedTensors, name: str, outputs: int, inputs: int, bias: Tensor | None
    ) -> QuantisedWeight:
        weight = tensors.take(f"{name}.weight", (outputs, inputs), *FLOATS)
        return QuantisedWeight.quantise(weight, self.bits[name], bias)


def _weight_of(module: Any) -> Tensor:
    weight: Tensor = module.weight
    return weight


def _is_rounded(name: str, module: nn.Module) -> bool:
    leaf = name.rpartition(".")[2]
    return type(module) is nn.Linear and module.in_features % _GROUP == 0 and leaf not in _KEPT
