"""The layers of Llama-like models over packed weights, all in one call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tts_kernels import _core
from tts_kernels.ops._common import (
    check_devices,
    check_int32,
    check_plan_tensors,
    kv_view,
    plan_view,
    summary_view,
)
from tts_kernels.packed_weight import PANEL, PackedWeight
from tts_kernels.plan import TreePlan
from tts_kernels.pool import KVPool

PARTS = ("matrix products", "attention", "append", "norms and rotary")  # csrc/cpu/decoder_layers.h


def seconds_by_part() -> dict[str, float]:
    """Where the time of all `DecoderLayers` calls of this process went so far."""
    return dict(zip(PARTS, _core.decoder_layers_seconds(), strict=True))


class DecoderLayer(NamedTuple):
    """Attention after an RMS norm, then a SwiGLU MLP after another, each added to its input.

    Attributes:
        input_norm, mlp_norm: float32 [hidden], weights of the norms.
        qkv: hidden -> queries, keys and values of all heads, side by side.
        q_norm, k_norm: float32 [head_dim], weights of RMS norms of each head of q, of k (Qwen3), or None.
        o: heads -> hidden. gate_up, down: of the MLP, the first gated.
        scale: of the logits. window: most tokens that a query sees; None: all.
    """

    input_norm: Tensor
    qkv: PackedWeight
    q_norm: Tensor | None
    k_norm: Tensor | None
    o: PackedWeight
    mlp_norm: Tensor
    gate_up: PackedWeight
    down: PackedWeight
    scale: float
    window: int | None


class DecoderLayers:
    """A model's layers for one call a step: to the bit what `rms_norm`, `packed_linear`, `rotate_qkv`,
    `append_kv` and `tree_attention` give one after the other, without the time between them.

    Args:
        layers: in order; kept, and not copied.
        num_q_heads, num_kv_heads, head_dim: of the attention.
        eps: of all norms.

    Raises:
        TypeError, ValueError: sizes or dtypes do not fit together.
    """

    def __init__(
        self,
        layers: Sequence[DecoderLayer],
        *,
        num_q_heads: int,
        num_kv_heads: int,
        head_dim: int,
        eps: float,
    ) -> None:
        self.layers = tuple(layers)
        if not self.layers:
            raise ValueError("layers: got none, expected at least one")
        self.hidden = self.layers[0].qkv.inputs
        self.head_dim = head_dim
        q_width, kv_width = num_q_heads * head_dim, num_kv_heads * head_dim
        mlp = self.layers[0].gate_up.outputs
        weights = self.layers[0].qkv.panels.dtype
        for index, layer in enumerate(self.layers):
            _check_weight(f"layers[{index}].qkv", layer.qkv, self.hidden, q_width + 2 * kv_width, weights)
            _check_weight(f"layers[{index}].o", layer.o, q_width, self.hidden, weights)
            _check_weight(f"layers[{index}].gate_up", layer.gate_up, self.hidden, mlp, weights, gated=True)
            _check_weight(f"layers[{index}].down", layer.down, mlp, self.hidden, weights)
            for name, size in [("input_norm", self.hidden), ("mlp_norm", self.hidden)]:
                _check_floats(f"layers[{index}].{name}", getattr(layer, name), (size,))
            for name in ("q_norm", "k_norm"):
                if getattr(layer, name) is not None:
                    _check_floats(f"layers[{index}].{name}", getattr(layer, name), (head_dim,))
        heads = num_q_heads, num_kv_heads, head_dim
        self._shape = _core.DecoderShape(self.hidden, heads, weights == torch.bfloat16, eps)
        self._layers = [_core_layer(layer) for layer in self.layers]

    def __call__(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        pool: KVPool,
        slots: Tensor,
        plan: TreePlan,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Runs T tokens through all layers; their keys and values go to the pool.

        Args:
            x: float32 [T, hidden], contiguous: becomes the output of the last layer.
            cos, sin: float32 [T, head_dim], contiguous, of the tokens' positions, as `rotate_qkv` takes them.
            pool: packed, of as many layers.
            slots: int32 [T], where the tokens' keys and values go.
            plan: of the T queries, the new tokens included.
            dtype: of queries, keys and values; beside int8 pages float32 or bfloat16. Default: the pool's.

        Raises:
            TypeError, ValueError: a dtype, device, shape or stride does not fit, or an index leads outside
                the pool. Nothing has been written.
        """
        check_devices(x=x, cos=cos, sin=sin, slots=slots, k_pages=pool.k_pages)
        _check_floats("x", x, (len(slots), self.hidden))
        _check_floats("cos", cos, (len(slots), self.head_dim))
        _check_floats("sin", sin, (len(slots), self.head_dim))
        check_int32("slots", slots)
        if plan.num_queries != len(slots):
            raise ValueError(
                f"plan: got {plan.num_queries} queries, expected {len(slots)}, one for each slot"
            )
        if pool.num_layers != len(self.layers):
            raise ValueError(f"pool: got {pool.num_layers} layers, expected {len(self.layers)}")
        tensors = plan.query_order, plan.query_position, plan.blocks, plan.segments, plan.pages
        check_plan_tensors(*tensors)
        dtype = pool.dtype if dtype is None else dtype
        if dtype not in (torch.float32, torch.bfloat16):
            raise TypeError(f"dtype: got {dtype}, expected torch.float32 or torch.bfloat16")
        if dtype != pool.dtype and pool.dtype != torch.int8:
            raise TypeError(f"dtype: got {dtype}, expected {pool.dtype}, the dtype of the pool")
        pages = pool.k_pages, pool.v_pages
        _core.decoder_layers(
            self._shape,
            self._layers,
            x.data_ptr(),
            (cos.data_ptr(), sin.data_ptr()),
            dtype == torch.bfloat16,
            kv_view(*pages, pool.scales, layers=1),
            (pages[0].stride(0), pages[1].stride(0)),
            summary_view(pool.summaries, *pages, layers=1),
            slots.data_ptr(),
            plan_view(*tensors),
            torch.get_num_threads(),
        )


def _core_layer(layer: DecoderLayer) -> _core.DecoderLayer:
    return _core.DecoderLayer(
        (layer.input_norm.data_ptr(), layer.mlp_norm.data_ptr()),
        (_address(layer.q_norm), _address(layer.k_norm)),
        _matrix(layer.qkv),
        _matrix(layer.o),
        _matrix(layer.gate_up),
        _matrix(layer.down),
        layer.scale,
        layer.window or 0,
    )


def _matrix(weight: PackedWeight) -> _core.PackedMatrix:
    return _core.PackedMatrix(weight.panels.data_ptr(), len(weight.panels), _address(weight.bias))


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _check_weight(
    name: str, weight: PackedWeight, inputs: int, outputs: int, dtype: torch.dtype, *, gated: bool = False
) -> None:
    if weight.panels.dtype != dtype:
        raise TypeError(f"{name}: got {weight.panels.dtype}, expected {dtype} as the first weight has")
    if (weight.inputs, weight.outputs, weight.gated) != (inputs, outputs, gated):
        raise ValueError(
            f"{name}: got {weight.inputs} inputs, {weight.outputs} outputs, gated: {weight.gated}, expected "
            f"{inputs}, {outputs}, {gated}"
        )
    if not name.endswith(".qkv") and outputs % PANEL:
        raise ValueError(f"{name}: got {outputs} outputs, expected a multiple of {PANEL}")


def _check_floats(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tensor.dtype != torch.float32:
        raise TypeError(f"{name}: got {tensor.dtype}, expected torch.float32")
    if tensor.shape != shape or not tensor.is_contiguous():
        raise ValueError(
            f"{name}: got shape {list(tensor.shape)} and strides {tensor.stride()}, expected contiguous "
            f"{list(shape)}"
        )
