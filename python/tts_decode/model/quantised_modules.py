"""Modules whose weights stay quantised, replacing a transformers model's own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from tts_kernels import QuantisedWeight, packed_linear

from ..errors import UnsupportedModelError
from .exact_product import product_in_bands
from .packed_modules import Packed


class Quantised(nn.Module):
    """Shared by modules with one quantised weight. They stay on the CPU, and are not trained or saved.

    Attributes:
        panels: uint8, the weight's.
        bias: float32, the weight's, padded to whole panels; or None. A cast of the module changes neither.
        form: of the panels.
        kind: the weight file's name for it, for people.
    """

    panels: Tensor
    bias: Tensor | None

    def __init__(self, weight: QuantisedWeight, kind: str = "quantised") -> None:
        super().__init__()
        if not isinstance(weight, QuantisedWeight) or weight.gated:
            raise TypeError(f"weight: got {type(weight).__name__}, expected a QuantisedWeight without gate")
        self.register_buffer("panels", weight.panels)
        self.register_buffer("bias", weight.bias)
        self.form, self.kind = weight.form, kind
        self.training = False
        self._weight = weight

    @property
    def quantised(self) -> QuantisedWeight:
        """The weight, which shares its memory with the module."""
        known = self._weight
        if known.panels is not self.panels or known.bias is not self.bias:
            self._weight = replace(known, panels=self.panels, bias=self.bias)
        return self._weight

    def dequantised(self) -> Tensor:
        """Returns float32 [outputs, inputs]."""
        return self.quantised.dequantised()

    def train(self, mode: bool = True) -> Any:
        if mode:
            raise self._refusal("training", "load the model with weights='float32' to train it")
        return super().train(mode)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Handles `to` and similar calls. Refuses other devices; the numbers do not change."""
        device = fn(torch.empty(0, dtype=torch.uint8)).device
        if device.type != "cpu":
            raise self._refusal(f"a move to {device}", "load the model with weights='bfloat16' for a GPU")
        return self

    def _save_to_state_dict(self, *_args: Any, **_kwargs: Any) -> None:
        raise self._refusal("saving", "keep the file that the model was loaded from")

    def _refusal(self, what: str, remedy: str) -> UnsupportedModelError:
        return UnsupportedModelError(
            f"{type(self).__name__}: got {what}, expected a quantised weight to stay as it is on the CPU; "
            f"{remedy}"
        )


class QuantisedLinear(Quantised):
    """A linear layer.

    Attributes:
        in_features, out_features: of the layer.
        exact: products are torch's with the dequantised weight. The self-check sets it temporarily, because
            the int8 rounding of activations would hide small faults.
    """

    def __init__(self, weight: QuantisedWeight, kind: str = "quantised") -> None:
        super().__init__(weight, kind)
        self.in_features, self.out_features = weight.inputs, weight.outputs
        self.exact = False

    def forward(self, x: Tensor) -> Tensor:
        """x: float32 or bfloat16 [..., in_features]. Returns [..., out_features] in its dtype."""
        rows = x.reshape(-1, self.in_features)
        made = (product_in_bands if self.exact else packed_linear)(rows, self.quantised)
        return made.reshape(*x.shape[:-1], self.out_features).to(x.dtype)


class QuantisedEmbedding(Quantised):
    """An embedding table. A `QuantisedLinear` may share its weight and memory.

    Attributes:
        num_embeddings, embedding_dim: of the table.
        dtype: of the rows that it returns.
        scale: of the rows, rounded to that dtype (Gemma).
    """

    def __init__(
        self, weight: QuantisedWeight, dtype: torch.dtype, scale: float = 1.0, kind: str = "quantised"
    ) -> None:
        super().__init__(weight, kind)
        self.num_embeddings, self.embedding_dim = weight.outputs, weight.inputs
        self.dtype, self.scale = dtype, scale

    def forward(self, ids: Tensor) -> Tensor:
        """ids: int64 [...]. Returns [..., embedding_dim]."""
        rows = self.quantised.rows(ids.flatten()).view(*ids.shape, self.embedding_dim).to(self.dtype)
        return rows if self.scale == 1.0 else rows * torch.tensor(self.scale, dtype=self.dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        super()._apply(fn, recurse)
        self.dtype = fn(torch.empty(0, dtype=self.dtype)).dtype
        return self


def weight_shape(module: Any) -> list[int]:
    """Returns [outputs, inputs] of a linear layer or an embedding table, quantised or not."""
    if isinstance(module, Quantised):
        return [module.quantised.outputs, module.quantised.inputs]
    if isinstance(module, Packed):
        return list(module.parts["weight"].shape)
    return list(module.weight.shape)


def weight_rows(module: Any, rows: list[int]) -> Tensor:
    """Returns float32 [len(rows), inputs] on the CPU, of such a module's weight."""
    if isinstance(module, Quantised):
        return module.quantised.rows(torch.tensor(rows))
    if isinstance(module, Packed):
        return module.packed("weight").rows(torch.tensor(rows)).float()
    return module.weight.detach()[rows].float().cpu()  # type: ignore[no-any-return]
