"""Modules whose float weights are stored only in panels, as the kernels read them.

A module is packed in place: it gets a class of this file, and its weight's memory the order of panels. Asking
for the weight itself, by name, by a cast or for a state dict, restores it permanently: the module gets its
own class again.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple
from weakref import WeakSet

import torch
from torch import Tensor, nn

from tts_kernels import PackedWeight, packed_linear

from ..errors import UnsupportedModelError
from .exact_product import product_in_bands
from .experts import Expert, sum_of_experts

_BAND = 32  # panels of a weight that is unpacked band by band


class Tie:
    """Shared state of modules with the same panels: when one of them restores the weight, all do.

    Attributes:
        weight: of all of them, once restored.
        modules: modules to notify. Those of a copy of a model are not known, and find out when they run.
    """

    def __init__(self) -> None:
        self.weight: nn.Parameter | None = None
        self.modules: WeakSet[Packed] = WeakSet()

    def __deepcopy__(self, memo: dict[int, Any]) -> Tie:
        made = memo[id(self)] = Tie()
        made.weight = copy.deepcopy(self.weight, memo)
        return made

    def __reduce__(self) -> tuple[type[Tie], tuple[()], dict[str, Any]]:
        return Tie, (), {"weight": self.weight}


class _Part(NamedTuple):
    """A packed weight of a module. shape: of the parameter; experts' weights are concatenated."""

    shape: torch.Size
    tie: Tie


class Packed(nn.Module):
    """Shared by packed modules. They are on the CPU, and no gradient goes to their weights.

    Attributes:
        plain: the class that the module had.
        parts: its packed weights by name. The panels of one are the buffer `NAME_panels`.
        exact: products are torch's in float32. The self-check sets it temporarily.
    """

    plain: type[nn.Module]
    parts: dict[str, _Part]
    exact = False

    def panels(self, name: str) -> Tensor:
        found: Tensor = getattr(self, f"{name}_panels")
        return found

    def packed(self, name: str) -> PackedWeight:
        """Returns [outputs, inputs] of a weight, those of all experts concatenated."""
        return PackedWeight(self.panels(name), None, self.parts[name].shape[:-1].numel())

    def unpacked(self, name: str) -> Tensor:
        """Returns a copy of a weight, in its original shape and dtype."""
        return self.packed(name).unpacked().view(self.parts[name].shape)

    @staticmethod
    def pack_part(name: str, weight: Tensor) -> Tensor:
        """The panels of a weight, in its memory where that is its alone."""
        pack = PackedWeight.pack_in_place if is_alone(weight) else PackedWeight.pack
        return pack(weight.flatten(0, -2)).panels

    def still_packed(self, x: Tensor | None = None) -> bool:
        """Whether it can run over panels: x needs no gradient, and no module restored their common weight.

        Otherwise it is unpacked.
        """
        gradient = x is not None and x.requires_grad and torch.is_grad_enabled()
        if gradient or any(part.tie.weight is not None for part in self.parts.values()):
            self.unpack()
            return False
        return True

    def unpack(self) -> None:
        """Restores the module permanently."""
        parts = self.parts
        for name, part in parts.items():
            if part.tie.weight is None:
                part.tie.weight = nn.Parameter(self.unpacked(name), requires_grad=False)
        for name, part in parts.items():
            del self._buffers[f"{name}_panels"]
            self._parameters[name] = part.tie.weight
        _become(self, self.plain)
        del self.plain, self.parts
        for other in [module for part in parts.values() for module in part.tie.modules]:
            if isinstance(other, Packed):
                other.unpack()

    def train(self, mode: bool = True) -> Any:
        if mode:
            raise UnsupportedModelError(
                f"{type(self).__name__}: got training, expected weights that are packed for inference to "
                "stay; load the model by load_model without pack_weights to train it"
            )
        return super().train(mode)

    def __getattr__(self, name: str) -> Any:
        if name in self.__dict__.get("parts", ()):
            self.unpack()
            return getattr(self, name)
        return super().__getattr__(name)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Handles `to` and similar calls: panels have one dtype, and stay on the CPU."""
        for name in self.parts:
            before = self.panels(name).new_empty(0)
            after = fn(before)
            if (after.dtype, after.device) != (before.dtype, before.device):
                self.unpack()
                unpacked: Any = self
                return unpacked._apply(fn, recurse)  # by the class that it has now
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]

    def _save_to_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.unpack()
        self._save_to_state_dict(*args, **kwargs)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.unpack()
        self._load_from_state_dict(*args, **kwargs)


class PackedLinear(Packed, nn.Linear):
    """A linear layer."""

    @property
    def packed_weight(self) -> PackedWeight:
        """Returns the weight with the layer's current bias."""
        return self.packed("weight").with_bias(None if self.bias is None else self.bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        """Maps float32 or bfloat16 [..., in_features] to [..., out_features] in the same dtype."""
        if x.shape[-1:] != (self.in_features,):
            raise ValueError(f"input: got shape {list(x.shape)}, expected [..., {self.in_features}]")
        if not self.still_packed(x):
            return self(x)  # type: ignore[no-any-return]  # by the class that it has now
        multiply = product_in_bands if self.exact else packed_linear
        made = multiply(x.reshape(-1, self.in_features).contiguous(), self.packed_weight)
        return made.reshape(*x.shape[:-1], self.out_features).to(x.dtype)

    def by_torch(self, x: Tensor) -> Tensor:
        """Returns nn.Linear's result, some outputs at a time, for the self-check."""
        whole = self.packed("weight")
        each = whole.columns // len(whole.panels)
        made = x.new_empty(*x.shape[:-1], whole.columns)
        for panels, part in zip(
            torch.split(whole.panels, _BAND), torch.split(made, each * _BAND, -1), strict=True
        ):
            part.copy_(nn.functional.linear(x, PackedWeight(panels, None, part.shape[-1]).unpacked()))
        product = made[..., : self.out_features]
        return product if self.bias is None else product + self.bias


class PackedEmbedding(Packed, nn.Embedding):
    """An embedding table that a tied head shares."""

    def forward(self, ids: Tensor) -> Tensor:
        """ids: int64 [...]. Returns [..., embedding_dim]."""
        if not self.still_packed():
            return self(ids)  # type: ignore[no-any-return]  # by the class that it has now
        rows = self.packed("weight").rows(ids.flatten()).view(*ids.shape, self.embedding_dim)
        scale = getattr(self, "embed_scale", None)  # Gemma
        return rows if scale is None else rows * scale.to(rows.dtype)


class PackedExperts(Packed):
    """All experts of a layer, in tensors that hold all of them."""

    @property
    def experts(self) -> list[Expert]:
        """Returns the experts one by one. Gate and up are concatenated."""
        found = self._experts()
        return [one.widened() for one in found] if self.exact else found

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """hidden_states: [T, hidden]. top_k_index, top_k_weights: [T, k], the experts of each token."""
        if not self.still_packed(hidden_states):
            return self(hidden_states, top_k_index, top_k_weights)  # type: ignore[no-any-return]
        multiply = product_in_bands if self.exact else packed_linear
        return sum_of_experts(
            self._experts(), self._inner, hidden_states, top_k_index, top_k_weights, multiply=multiply
        )

    def _experts(self) -> list[Expert]:
        gate_up, down = self._split("gate_up_proj"), self._split("down_proj")
        return [Expert((both,), down[index]) for index, both in enumerate(gate_up)]

    def _inner(self, gate: Tensor, up: Tensor) -> Tensor:
        return self.act_fn(gate) * up  # type: ignore[no-any-return]

    def _split(self, name: str) -> list[PackedWeight]:
        count, outputs, _ = self.parts[name].shape
        return [PackedWeight(panels, None, outputs) for panels in self.panels(name).chunk(count)]


def pack_module(module: Any, kind: type[Packed], ties: dict[str, Tie]) -> None:
    """Packs parameters of a module by name, and gives it a class of this file.

    Nobody else may hold the parameters: their memory is reused if it is theirs alone.
    """
    made = {}
    for name in ties:
        made[name] = kind.pack_part(name, module._parameters[name].detach())
    parts = {name: _Part(module._parameters.pop(name).shape, tie) for name, tie in ties.items()}
    for name, panels in made.items():
        module.register_buffer(f"{name}_panels", panels, persistent=False)
    module.plain, module.parts = type(module), parts
    _become(module, kind)
    for tie in ties.values():
        tie.modules.add(module)


def is_alone(weight: Tensor) -> bool:
    """Whether nothing else shares the memory of a weight."""
    return weight.untyped_storage().nbytes() == weight.nbytes


def share_panels(module: Any, kind: type[Packed], other: Packed) -> None:
    """Packs a module that shared its `weight` with `other`, which was packed before."""
    del module._parameters["weight"]
    module.register_buffer("weight_panels", other.panels("weight"), persistent=False)
    module.plain, module.parts = type(module), other.parts
    _become(module, kind)
    other.parts["weight"].tie.modules.add(module)


def _become(module: nn.Module, kind: type[nn.Module]) -> None:
    module.__class__ = kind
