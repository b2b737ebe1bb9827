"""Experts of a mixture whose weights stay quantised, replacing a transformers model's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from operator import is_
from typing import Any

from torch import Tensor, nn

from tts_kernels import QuantisedWeight, packed_linear

from .exact_product import product_in_bands
from .experts import Expert, clamped_swiglu, sum_of_experts
from .quantised_modules import Quantised


class QuantisedExperts(nn.Module):
    """All experts of a layer, each down(act(gate(x)) * up(x)), or down of a clamped SwiGLU.

    Attributes:
        gate, up, down: the weights of all experts, concatenated: [experts * outputs, inputs]; biases
            likewise.
        num_experts: number of experts.
        act_fn: the activation.
        clamp: alpha and limit as in `tts_kernels.Experts`, instead of an activation.
        exact: as in `QuantisedLinear`.
    """

    def __init__(
        self,
        weights: tuple[Quantised, Quantised, Quantised],
        num_experts: int,
        act_fn: Any = None,
        clamp: tuple[float, float] | None = None,
    ) -> None:
        super().__init__()
        self.gate, self.up, self.down = weights
        self.num_experts, self.act_fn, self.clamp = num_experts, act_fn, clamp
        self.exact = False
        self._made: tuple[tuple[Any, ...], Sequence[Expert]] = (), ()

    @property
    def intermediate_size(self) -> int:
        return self.down.quantised.inputs

    @property
    def experts(self) -> Sequence[Expert]:
        """Returns the experts one by one; they share the memory of all."""
        parts = self.gate, self.up, self.down
        key = self.exact, *(part.panels for part in parts)
        if not self._made[1] or not all(map(is_, self._made[0], key)):
            sides = [self._split(part.quantised) for part in parts]
            self._made = key, [Expert((gate, up), down) for gate, up, down in zip(*sides, strict=True)]
        return self._made[1]

    def _split(self, weight: QuantisedWeight) -> list[QuantisedWeight]:
        weight = weight.exact() if self.exact else weight
        outputs = weight.outputs // self.num_experts
        made = [
            replace(weight, panels=panels, bias=None, outputs=outputs)
            for panels in weight.panels.chunk(self.num_experts)
        ]
        if weight.bias is None:
            return made
        biases = weight.bias.chunk(self.num_experts)
        return [replace(one, bias=bias) for one, bias in zip(made, biases, strict=True)]

    def _inner(self, gate: Tensor, up: Tensor) -> Tensor:
        if self.clamp is None:
            return self.act_fn(gate) * up  # type: ignore[no-any-return]
        return clamped_swiglu(gate, up, *self.clamp)

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """hidden_states: [T, hidden]. top_k_index, top_k_weights: [T, k], the experts of each token."""
        multiply = product_in_bands if self.exact else packed_linear
        return sum_of_experts(
            self.experts, self._inner, hidden_states, top_k_index, top_k_weights, multiply=multiply
        )
