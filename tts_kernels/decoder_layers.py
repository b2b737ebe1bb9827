"""The layers of Llama-like models over packed weights, all in one call."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tts_kernels import _core
from tts_kernels.checks import Array, Guard, Number, Rule, Signature, dtype_of, instance, integer, real, shown
from tts_kernels.ops._pages import (
    CORE_DTYPES,
    FLOAT32,
    INT32,
    PACKED_HEAD_DIM,
    kv_view,
    no_scales,
    page_arrays,
    scale_arrays,
    summary_arrays,
    summary_view,
)
from tts_kernels.ops._plans import PLAN_ARRAYS, PLAN_NAMES, packed_plan, plan_tensors, plan_view
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
        try:
            self.layers = tuple(layers)
        except TypeError:
            raise TypeError(f"layers: got {shown(layers)}, expected a sequence of DecoderLayer") from None
        if not self.layers:
            raise ValueError("layers: got none, expected at least one")
        for index, layer in enumerate(self.layers):
            instance(f"layers[{index}]", layer, DecoderLayer, "name its weights")
            for name in ("qkv", "o", "gate_up", "down"):
                instance(
                    f"layers[{index}].{name}",
                    getattr(layer, name),
                    PackedWeight,
                    "make it with PackedWeight.pack",
                )
        heads = integer("num_q_heads", num_q_heads, 1), integer("num_kv_heads", num_kv_heads, 1)
        self.head_dim, self.eps = integer("head_dim", head_dim, 1), real("eps", eps)
        self._heads = (*heads, self.head_dim)
        self.hidden = self.layers[0].qkv.inputs
        self._prepare()

    def __reduce__(self) -> tuple[Any, ...]:
        return _made_again, (self.layers, *self._heads, self.eps)

    def _prepare(self) -> None:
        """Checks the weights and notes where they lie, which changes if somebody resizes their storage."""
        q_heads, kv_heads, head_dim = self._heads
        q_width, kv_width = q_heads * head_dim, kv_heads * head_dim
        mlp, weights = self.layers[0].gate_up.outputs, self.layers[0].qkv.panels.dtype
        made = []
        for index, layer in enumerate(self.layers):
            try:
                _check_weight("qkv", layer.qkv, self.hidden, q_width + 2 * kv_width, weights)
                _check_weight("o", layer.o, q_width, self.hidden, weights)
                _check_weight("gate_up", layer.gate_up, self.hidden, mlp, weights, gated=True)
                _check_weight("down", layer.down, mlp, self.hidden, weights)
                norms = layer.input_norm, layer.mlp_norm, layer.q_norm, layer.k_norm
                window = 0 if layer.window is None else integer("window", layer.window, 1)
                options = real("scale", layer.scale), self.eps, *self._heads, self.hidden
                _LAYER.check_all((*norms, *options))
            except (TypeError, ValueError) as error:
                raise type(error)(f"layers[{index}].{error}") from None
            made.append(_core_layer(layer, options[0], min(window, 2**30)))
        self._tensors = [
            tensor for layer in self.layers for tensor in _tensors_of(layer) if tensor is not None
        ]
        self._addresses = [tensor.data_ptr() for tensor in self._tensors]
        self._begins = np.array(self._addresses)
        self._ends = self._begins + [tensor.nbytes for tensor in self._tensors]
        self._shape = _core.DecoderShape(self.hidden, self._heads, CORE_DTYPES[weights], self.eps)
        self._layers = made

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
        instance("pool", pool, KVPool, "make it with KVPool(...)")
        if pool.layout != "packed":
            raise ValueError(f"pool: got layout {pool.layout!r}, expected 'packed'")
        if pool.num_layers != len(self.layers):
            raise ValueError(f"pool: got {pool.num_layers} layers, expected {len(self.layers)}")
        dtype = dtype_of("dtype", pool.dtype if dtype is None else dtype, (torch.float32, torch.bfloat16))
        if dtype != pool.dtype and pool.dtype != torch.int8:
            raise TypeError(f"dtype: got {dtype}, expected {pool.dtype}, the dtype of the pool")
        tensors = plan_tensors(packed_plan(plan))
        pages = pool.k_pages, pool.v_pages
        sizes = self.hidden, self._heads[1], self.head_dim
        _STEP.check_all((x, cos, sin, slots, *tensors, *pages, pool.summaries, pool.scales, *sizes))
        self._check_weights(x)
        _core.decoder_layers(
            self._shape,
            self._layers,
            x.data_ptr(),
            (cos.data_ptr(), sin.data_ptr()),
            CORE_DTYPES[dtype],
            kv_view(*pages, pool.scales, layers=1),
            (pages[0].stride(0), pages[1].stride(0)),
            summary_view(pool.summaries),
            slots.data_ptr(),
            plan_view(*tensors),
            torch.get_num_threads(),
        )
        written = x, *pages, pool.summaries, pool.scales
        torch.autograd.graph.increment_version([tensor for tensor in written if tensor is not None])

    def _check_weights(self, x: Tensor) -> None:
        if [tensor.data_ptr() for tensor in self._tensors] != self._addresses:
            self._prepare()
        begin = x.data_ptr()
        if x.numel() and ((self._begins < begin + x.nbytes) & (self._ends > begin)).any():
            raise ValueError(
                "x: got memory that a weight shares, expected memory of its own: it is written to"
            )


@lru_cache
def _step_takes(dtype: torch.dtype) -> Signature:
    return Signature(
        Number("hidden", "hidden >= 1"),
        Number("num_kv_heads", "num_kv_heads >= 1"),
        Number("head_dim", "head_dim >= 1"),
        Array("slots", "T", INT32),
        Array("x", "T, hidden", FLOAT32, written=True),
        Array("cos", "T, head_dim", FLOAT32),
        Array("sin", "T, head_dim", FLOAT32),
        *PLAN_ARRAYS,
        *page_arrays(dtype, plain=False, layers=True, written=True),
        *summary_arrays(dtype, layers=True),
        *scale_arrays(dtype, layers=True, written=True),
        home="k_pages",
        absent=no_scales(dtype),
    )


_STEP = Guard(
    "DecoderLayers",
    (
        *("x", "cos", "sin", "slots", *PLAN_NAMES, "k_pages", "v_pages", "summaries", "scales"),
        *("hidden", "num_kv_heads", "head_dim"),
    ),
    lambda values: _step_takes(values["k_pages"].dtype),
)
_NUMBERS = (
    Number("scale", "2**-126 <= scale <= 2**64"),
    Number("eps", "2**-126 <= eps <= 2**127"),
    Number("num_q_heads", "1 <= num_q_heads < 2**31"),
    Number("num_kv_heads", "1 <= num_kv_heads < 2**31"),
    Number("head_dim", PACKED_HEAD_DIM),
    Number("hidden", "hidden >= 1"),
)
_LAYER = Guard(
    "DecoderLayers",
    ("input_norm", "mlp_norm", "q_norm", "k_norm", *(number.name for number in _NUMBERS)),
    lambda _: Signature(
        *_NUMBERS,
        Rule("num_q_heads", "num_q_heads % num_kv_heads == 0"),
        Array("input_norm", "hidden", FLOAT32),
        Array("mlp_norm", "hidden", FLOAT32),
        Array("q_norm", "head_dim", FLOAT32, optional=True),
        Array("k_norm", "head_dim", FLOAT32, optional=True),
        home="input_norm",
    ),
)


def _made_again(
    layers: Sequence[DecoderLayer], num_q_heads: int, num_kv_heads: int, head_dim: int, eps: float
) -> DecoderLayers:
    return DecoderLayers(
        layers, num_q_heads=num_q_heads, num_kv_heads=num_kv_heads, head_dim=head_dim, eps=eps
    )


def _tensors_of(layer: DecoderLayer) -> tuple[Tensor | None, ...]:
    weights = layer.qkv, layer.o, layer.gate_up, layer.down
    norms = layer.input_norm, layer.mlp_norm, layer.q_norm, layer.k_norm
    return (*norms, *(weight.panels for weight in weights), *(weight.bias for weight in weights))


def _core_layer(layer: DecoderLayer, scale: float, window: int) -> _core.DecoderLayer:
    return _core.DecoderLayer(
        (layer.input_norm.data_ptr(), layer.mlp_norm.data_ptr()),
        (_address(layer.q_norm), _address(layer.k_norm)),
        _matrix(layer.qkv),
        _matrix(layer.o),
        _matrix(layer.gate_up),
        _matrix(layer.down),
        scale,
        window,
    )


def _matrix(weight: PackedWeight) -> _core.PackedMatrix:
    return _core.PackedMatrix(weight.panels.data_ptr(), len(weight.panels), _address(weight.bias))


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _check_weight(
    name: str, weight: PackedWeight, inputs: int, outputs: int, dtype: torch.dtype, *, gated: bool = False
) -> None:
    weight.check()
    if weight.panels.dtype != dtype:
        raise TypeError(f"{name}: got {weight.panels.dtype}, expected {dtype} as the first weight has")
    if (weight.inputs, weight.outputs, weight.gated) != (inputs, outputs, gated):
        raise ValueError(
            f"{name}: got {weight.inputs} inputs, {weight.outputs} outputs, gated: {weight.gated}, expected "
            f"{inputs}, {outputs}, {gated}"
        )
    if name != "qkv" and outputs % PANEL:
        raise ValueError(f"{name}: got {outputs} outputs, expected a multiple of {PANEL}")
