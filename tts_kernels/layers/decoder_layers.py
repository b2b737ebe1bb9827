"""The layers of Llama-like models over packed weights, all in one call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import _core
from ..checks import Array, Choice, Guard, Number, Rule, Signature, instance, integer, real, shown
from ..checks.pages import (
    CORE_DTYPES,
    FLOAT32,
    INT32,
    PACKED_HEAD_DIM,
    PLAN,
    page_arrays,
    scale_arrays,
    summary_arrays,
)
from ..plans.tree_plan import TreePlan, packed_plan
from ..pool import KVPool
from .packed_weight import FLOAT_DTYPES, PANEL, PackedWeight

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
        norm: float32 [hidden], weight of the norm behind the last layer, where there is one.
        head: hidden -> logits, behind that norm, where there is one.

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
        norm: Tensor | None = None,
        head: PackedWeight | None = None,
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
        if head is not None:
            instance("head", head, PackedWeight, "make it with PackedWeight.pack")
            if norm is None:
                raise ValueError("norm: got None beside a head, which is behind a norm; pass it")
        self.norm, self.head = norm, head
        logits = 0 if head is None else head.columns
        self._numbers = len(self.layers), self.hidden, heads[1], self.head_dim, logits
        self._prepare()

    def __reduce__(self) -> tuple[Any, ...]:
        return _made_again, (self.layers, *self._heads, self.eps, self.norm, self.head)

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
                _LAYER.check((*norms, *options))
            except (TypeError, ValueError) as error:
                raise type(error)(f"layers[{index}].{error}") from None
            made.append(_core_layer(layer, options[0], min(window, 2**30)))
        tensors = [tensor for layer in self.layers for tensor in _tensors_of(layer)]
        if self.norm is not None:
            _NORM.check((self.norm, self.hidden))
            tensors.append(self.norm)
        if self.head is not None:
            _check_weight("head", self.head, self.hidden, self.head.outputs, weights)
            tensors += self.head.panels, self.head.bias
        self._places = _core.Places([tensor for tensor in tensors if tensor is not None])
        shape = _core.DecoderShape(self.hidden, self._heads, CORE_DTYPES[weights], self.eps)
        head = None if self.head is None else _matrix(self.head)
        self._run = _core.Decoder(shape, made, _address(self.norm), head).run

    def __call__(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        pool: KVPool,
        slots: Tensor,
        plan: TreePlan,
        dtype: torch.dtype | None = None,
        *,
        rows: Tensor | None = None,
        logits: Tensor | None = None,
    ) -> Tensor | None:
        """Runs T tokens through all layers; their keys and values go to the pool.

        Args:
            x: float32 [T, hidden], contiguous: becomes the output of the last layer.
            cos, sin: float32 [T, head_dim], contiguous, of the tokens' positions, as `rotate_qkv` takes them.
            pool: packed, of as many layers.
            slots: int32 [T], where the tokens' keys and values go.
            plan: of the T queries, the new tokens included.
            dtype: of queries, keys and values; beside int8 pages float32 or bfloat16. Default: the pool's.
            rows: int64 [R], tokens whose logits are wanted. Default: the first R.
            logits: float32 [R, head.columns], contiguous rows at any stride, where the logits go. Default:
                none are wanted.

        Returns:
            float32 [T, hidden], the outputs of the norm behind the last layer; None where there is no norm.

        Raises:
            TypeError, ValueError: a dtype, device, shape or stride does not fit, or an index leads outside
                the pool. Nothing has been written.
        """
        if type(pool) is not KVPool:
            instance("pool", pool, KVPool, "make it with KVPool(...)")
        if type(plan) is not TreePlan:
            plan = packed_plan(plan)
        buffer, pages = plan.buffer, (pool.k_pages, pool.v_pages)
        summaries, scales = pool.summaries, pool.scales
        dtype = pool.dtype if dtype is None else dtype
        args = (x, cos, sin, slots, buffer, *pages, summaries, scales, rows, logits, dtype, *self._numbers)
        if not self._places.hold():
            self._prepare()
        if _STEP.look(args) is None:
            self._settle(args, pool, dtype)
        for name, tensor in ("x", x), ("logits", logits):
            if tensor is not None and self._places.overlap(tensor):
                raise ValueError(
                    f"{name}: got memory that a weight shares, expected memory of its own: it is written to"
                )
        states = None if self.norm is None else torch.empty(x.shape, dtype=torch.float32, device="cpu")
        self._run(
            x.data_ptr(),
            (cos.data_ptr(), sin.data_ptr()),
            CORE_DTYPES[dtype],
            _core.KVView(*pages, scales, layers=1),
            (pages[0].stride(0), pages[1].stride(0)),
            _core.SummaryView(summaries, layers=1),
            slots.data_ptr(),
            (buffer.data_ptr(), buffer.shape[0]),
            x.shape[0],
            0 if states is None else states.data_ptr(),
            (0 if rows is None else rows.data_ptr(), 0 if logits is None else logits.shape[0]),
            (0, 0) if logits is None else (logits.data_ptr(), logits.stride(0)),
            torch.get_num_threads(),
        )
        written = [x, *pages]
        for tensor in (summaries, scales, logits):
            if tensor is not None:
                written.append(tensor)
        torch.autograd.graph.increment_version(written)
        return states

    def _settle(self, args: tuple[Any, ...], pool: KVPool, dtype: Any) -> None:
        """Checks arguments whose form is new."""
        if pool.layout != "packed":
            raise ValueError(f"pool: got layout {pool.layout!r}, expected 'packed'")
        if pool.num_layers != len(self.layers):
            raise ValueError(f"pool: got {pool.num_layers} layers, expected {len(self.layers)}")
        if dtype in FLOAT_DTYPES and dtype != pool.dtype and pool.dtype != torch.int8:
            raise TypeError(f"dtype: got {dtype}, expected {pool.dtype}, the dtype of the pool")
        _STEP.settle(args)


@lru_cache
def _step_takes(dtype: torch.dtype) -> Signature:
    return Signature(
        Number("num_layers", "num_layers >= 1"),
        Number("hidden", "hidden >= 1"),
        Number("num_kv_heads", "num_kv_heads >= 1"),
        Number("head_dim", "head_dim >= 1"),
        Number("head_columns", "head_columns >= 0"),
        Choice("dtype", FLOAT_DTYPES),
        Array("slots", "T", INT32),
        Array("x", "T, hidden", FLOAT32, written=True),
        Array("cos", "T, head_dim", FLOAT32),
        Array("sin", "T, head_dim", FLOAT32),
        PLAN,
        *page_arrays(dtype, plain=False, layers=True, written=True),
        *summary_arrays(dtype, layers=True),
        *scale_arrays(dtype, layers=True, written=True),
        Array("rows", "R", (torch.int64,), optional=True),
        Array("logits", "R, head_columns", FLOAT32, packed=1, written=True, optional=True),
        home="k_pages",
    )


def _step_of(values: Mapping[str, Any]) -> Signature:
    if values["logits"] is not None and not values["head_columns"]:
        raise ValueError("logits: got a tensor, expected None: there is no head")
    return _step_takes(values["k_pages"].dtype)


_STEP = Guard(
    "DecoderLayers",
    (
        *("x", "cos", "sin", "slots", "plan", "k_pages", "v_pages", "summaries", "scales", "rows", "logits"),
        *("dtype", "num_layers", "hidden", "num_kv_heads", "head_dim", "head_columns"),
    ),
    _step_of,
)
_NORM = Guard(
    "DecoderLayers",
    ("norm", "hidden"),
    lambda _: Signature(Number("hidden", "hidden >= 1"), Array("norm", "hidden", FLOAT32), home="norm"),
)
_NUMBERS = (
    Number("scale", "2**-126 <= scale <= 2**64", float),
    Number("eps", "2**-126 <= eps <= 2**127", float),
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
    layers: Sequence[DecoderLayer],
    num_q_heads: int,
    num_kv_heads: int,
    head_dim: int,
    eps: float,
    norm: Tensor | None,
    head: PackedWeight | None,
) -> DecoderLayers:
    heads = {"num_q_heads": num_q_heads, "num_kv_heads": num_kv_heads, "head_dim": head_dim}
    return DecoderLayers(layers, **heads, eps=eps, norm=norm, head=head)


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
    if name not in ("qkv", "head") and outputs % PANEL:
        raise ValueError(f"{name}: got {outputs} outputs, expected a multiple of {PANEL}")
