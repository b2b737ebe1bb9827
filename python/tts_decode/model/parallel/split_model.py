"""The forward over one rank's packed weights: a layer is split at its two sums over all ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tts_kernels import packed_linear, rms_norm

from ..families.reading import epsilon_of
from ..packed_model import Attend, Dense, PackedModel
from ..support.features import AttentionCall
from ..support.named_features import text_body
from ..tree_attention import StepContext, attend_pages
from .ranks import Ranks

_GATES: dict[str, Callable[[Tensor], Tensor]] = {
    "swiglu": nn.functional.silu,
    "geglu_tanh": partial(nn.functional.gelu, approximate="tanh"),
    "geglu": nn.functional.gelu,
}
_PLAIN: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu_tanh": partial(nn.functional.gelu, approximate="tanh"),
    "gelu": nn.functional.gelu,
    "relu_squared": lambda x: nn.functional.relu(x).square(),
}


class SplitModel(PackedModel):
    """Weights of a model whose modules hold a rank's part (`split_modules`).

    A rank's products use the kernels of the whole model on fewer heads, columns or inputs. Sums of the parts,
    and everything added to x, are float32 on every rank, so that all of them have the same x.
    """

    def __init__(self, model: Any, calls: Sequence[AttentionCall], epoch: int, ranks: Ranks) -> None:
        super().__init__(model, calls, epoch)
        self._ranks = ranks
        self._eps = epsilon_of(text_body(model).norm)

    def hidden_states(
        self,
        embeds: Tensor,
        positions: Tensor,
        dtype: torch.dtype,
        attend: Attend | Dense,
        **options: Any,
    ) -> Tensor:
        """Runs `PackedLayers.hidden_states`, layer by layer."""
        if isinstance(attend, tuple):
            attend = partial(attend_pages, StepContext(*attend))
        return super().hidden_states(embeds, positions, dtype, attend, **options)

    def after_attention(self, index: int, x: Tensor, attended: Tensor) -> None:
        layer = self.layers[index]
        part = packed_linear(attended.flatten(1), layer.o)
        inputs = self._normed(layer.mlp_norm, x) if layer.parallel else None
        if inputs is not None and layer.out_norm is None and layer.mlp_out_norm is None:
            part += self._mlp(index, inputs)  # both in one sum
            x.add_(self._ranks.sum(part), alpha=layer.factor)
            return
        x.add_(self._normed(layer.out_norm, self._ranks.sum(part)), alpha=layer.factor)
        inputs = self._normed(layer.mlp_norm, x) if inputs is None else inputs
        part = self._ranks.sum(self._mlp(index, inputs))
        x.add_(self._normed(layer.mlp_out_norm, part), alpha=layer.factor)

    def _mlp(self, index: int, inputs: Tensor) -> Tensor:
        """Returns this rank's part of an MLP's output for [T, hidden]."""
        layer = self.layers[index]
        assert layer.gate_up is not None  # mixtures are refused
        assert layer.down is not None
        weights = layer.gate_up if isinstance(layer.gate_up, tuple) else (layer.gate_up,)
        inner = [packed_linear(inputs, weight) for weight in weights]
        if weights[0].gated:  # the product has the activation
            return packed_linear(inner[0], layer.down)
        if layer.activation in _PLAIN:
            return packed_linear(_PLAIN[layer.activation](inner[0]), layer.down)
        gate, up = inner if len(inner) == 2 else inner[0].chunk(2, -1)
        return packed_linear(_GATES[layer.activation](gate) * up, layer.down)

    def _normed(self, norm: Tensor | None, rows: Tensor) -> Tensor:
        """Applies a norm of `DecoderLayer`."""
        if norm is None:
            return rows
        if norm.dim() == 1:
            return rms_norm(rows, norm, self._eps)
        return nn.functional.layer_norm(rows, rows.shape[-1:], norm[0], norm[1], self._eps)
