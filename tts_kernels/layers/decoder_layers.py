"""The layers of a model over packed weights, all in one call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _core
from ..checks import instance, integer, real, shown
from ..checks.pages import CORE_DTYPES
from ..plans.tree_plan import TreePlan, packed_plan
from ..pool import KVPool
from .decoder_arguments import AFTER, BEFORE, OUTPUT, STEP
from .decoder_layer import (
    DecoderLayer,
    LayerShape,
    checked_layer,
    norm_address,
    refuse_parts,
    tensors_of,
)
from .packed_weight import FLOAT_DTYPES
from .weight import Weight, check_weight, matrix, require_weight, side_by_side, tensors_of_weights

PARTS = ("matrix products", "attention", "append", "norms and rotary")  # csrc/cpu/decoder_layers.h


def seconds_by_part() -> dict[str, float]:
    """Returns how the time of all `DecoderLayers` calls of this process is divided so far."""
    return dict(zip(PARTS, _core.decoder_layers_seconds(), strict=True))


class DecoderLayers:
    """A model's layers, run by one call per step: what `DecoderLayer` describes, then a norm and the head.

    For attention of another kind, `before_attention`, `after_attention` and `output` give the same bits.

    Args:
        layers: in order; kept, not copied.
        num_q_heads, num_kv_heads, head_dim: of the attention.
        eps: of all norms.
        norm: after the last layer, if any, in the format of `DecoderLayer`'s norms.
        head: hidden -> logits, after that norm, if any.
        rotary_dim: channels of each head that are rotated, the first ones. Default: all.
        logit_factor: of the logits.
        logit_soft_cap: c turns the scaled logits l into c * tanh(l / c).

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
        head: Weight | None = None,
        rotary_dim: int | None = None,
        logit_factor: float = 1.0,
        logit_soft_cap: float | None = None,
    ) -> None:
        try:
            self.layers = tuple(layers)
        except TypeError:
            raise TypeError(f"layers: got {shown(layers)}, expected a sequence of DecoderLayer") from None
        if not self.layers:
            raise ValueError("layers: got none, expected at least one")
        for index, layer in enumerate(self.layers):
            refuse_parts(index, layer)
        heads = integer("num_q_heads", num_q_heads, 1), integer("num_kv_heads", num_kv_heads, 1)
        width = integer("head_dim", head_dim, 1)
        rotary = width if rotary_dim is None else integer("rotary_dim", rotary_dim, 2)
        self.hidden = side_by_side(self.layers[0].qkv)[0].inputs
        self._shape = LayerShape(self.hidden, *heads, width, rotary, real("eps", eps))
        self.head_dim, self.eps = width, self._shape.eps
        if head is not None:
            require_weight("head", head)
            if norm is None:
                raise ValueError("norm: got None beside a head, which is behind a norm; pass it")
        self.norm, self.head = norm, head
        self._logit_factor, self._logit_cap = real("logit_factor", logit_factor), logit_soft_cap
        for name, value in ("logit_factor", self._logit_factor), ("logit_soft_cap", logit_soft_cap):
            if value is not None and not 2**-126 <= real(name, value) <= 2**64:
                raise ValueError(f"{name}: got {value}, expected 2**-126 <= {name} <= 2**64")
        self.tables = 1 + max(layer.rotary or 0 for layer in self.layers)
        logits = 0 if head is None else head.columns
        chosen = {layer.experts.top_k for layer in self.layers if layer.experts is not None}
        top_k = 0 if not chosen else chosen.pop() if len(chosen) == 1 else -1  # -1: they differ
        self._numbers = len(self.layers), self.hidden, heads[1], width, logits, self.tables, rotary, top_k
        self._prepare()

    def __reduce__(self) -> tuple[Any, ...]:
        shape = self._shape
        heads = {name: getattr(shape, name) for name in ("num_q_heads", "num_kv_heads", "head_dim")}
        options = {"eps": shape.eps, "norm": self.norm, "head": self.head, "rotary_dim": shape.rotary_dim}
        logits = {"logit_factor": self._logit_factor, "logit_soft_cap": self._logit_cap}
        return _made_again, (self.layers, {**heads, **options, **logits})

    def _prepare(self) -> None:
        """Checks the weights and records their addresses, which change if their storage is resized."""
        shape = self._shape
        made = [checked_layer(index, layer, shape) for index, layer in enumerate(self.layers)]
        tensors = [tensor for layer in self.layers for tensor in tensors_of(layer)]
        norm = norm_address("norm", self.norm, self.hidden)
        if self.norm is not None:
            tensors.append(self.norm)
        if self.head is not None:
            check_weight("head", self.head, self.hidden, self.head.outputs)
            tensors += tensors_of_weights(self.head)
        self._places = _core.Places(tensors)
        head = None if self.head is None else matrix(self.head)
        logits = self._logit_factor, self._logit_cap or 0.0
        self._core = _core.Decoder(shape.core(), made, norm, head, logits)

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
        experts: Tensor | None = None,
    ) -> Tensor | None:
        """Runs T tokens through all layers; their keys and values go to the pool.

        Args:
            x: float32 [T, hidden], contiguous: becomes the output of the last layer.
            cos, sin: float32 [T, rotary_dim], contiguous, of the tokens' positions, as for `rotate_qkv`;
                [tables, T, rotary_dim] if layers have several.
            pool: packed, with the same number of layers.
            slots: int32 [T], where the tokens' keys and values go.
            plan: of the T queries, including the new tokens.
            dtype: of queries, keys and values; with int8 pages float32 or bfloat16. Default: the pool's.
            rows: int64 [R], tokens whose logits are needed. Default: the first R.
            logits: float32 [R, head.columns], contiguous rows at any stride, where the logits go. Default:
                none are computed.
            experts: int64 [T, top_k], distinct experts of each token, in all layers that have any. Default:
                those that their routers choose.

        Returns:
            float32 [T, hidden], the outputs of the norm after the last layer; None without a norm.

        Raises:
            TypeError, ValueError: a dtype, device, shape or stride does not fit, or an index is outside the
                pool. Nothing has been written.
        """
        if type(pool) is not KVPool:
            instance("pool", pool, KVPool, "make it with KVPool(...)")
        if type(plan) is not TreePlan:
            plan = packed_plan(plan)
        buffer, pages = plan.buffer, (pool.k_pages, pool.v_pages)
        summaries, scales = pool.summaries, pool.scales
        dtype = pool.dtype if dtype is None else dtype
        tensors = (x, cos, sin, slots, buffer, *pages, summaries, scales, rows, logits, experts)
        args = (*tensors, dtype, *self._numbers)
        if not self._places.hold():
            self._prepare()
        if STEP.look(args) is None:
            self._settle(args, pool, dtype)
        self._refuse_shared(x=x, logits=logits)
        states = None if self.norm is None else torch.empty(x.shape, dtype=torch.float32, device="cpu")
        self._core.run(
            x.data_ptr(),
            (cos.data_ptr(), sin.data_ptr(), self.tables),
            CORE_DTYPES[dtype],
            _core.KVView(*pages, scales, layers=1),
            (pages[0].stride(0), pages[1].stride(0)),
            _core.SummaryView(summaries, layers=1),
            slots.data_ptr(),
            (buffer.data_ptr(), buffer.shape[0]),
            x.shape[0],
            0 if experts is None else experts.data_ptr(),
            _output(states, rows, logits),
            torch.get_num_threads(),
        )
        written = [x, *pages]
        for tensor in (summaries, scales, logits):
            if tensor is not None:
                written.append(tensor)
        torch.autograd.graph.increment_version(written)
        return states

    def before_attention(
        self, index: int, x: Tensor, cos: Tensor, sin: Tensor, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns a layer's rotated queries and keys, and its values, for its inputs x.

        Takes the arguments of a call.

        Returns:
            q [T, num_q_heads, head_dim], k and v [T, num_kv_heads, head_dim] of `dtype`.
        """
        index = self._checked_index(index)
        if not self._places.hold():
            self._prepare()
        BEFORE.check((x, cos, sin, dtype, self.hidden, self.tables, self._shape.rotary_dim))
        shape, tokens = self._shape, x.shape[0]
        q = torch.empty((tokens, shape.num_q_heads, self.head_dim), dtype=dtype)
        k, v = (torch.empty((tokens, shape.num_kv_heads, self.head_dim), dtype=dtype) for _ in range(2))
        tables = cos.data_ptr(), sin.data_ptr(), self.tables
        rows, threads = _core.TokenRows(q), torch.get_num_threads()
        self._core.before_attention(
            index, x.data_ptr(), tokens, tables, rows, k.data_ptr(), v.data_ptr(), threads
        )
        return q, k, v

    def after_attention(self, index: int, x: Tensor, attended: Tensor) -> None:
        """Computes the rest of a layer: x, its inputs, becomes its outputs.

        Args:
            attended: float32 or bfloat16 [T, num_q_heads, head_dim], contiguous.
        """
        index = self._checked_index(index)
        if not self._places.hold():
            self._prepare()
        AFTER.check((x, attended, self.hidden, self._shape.num_q_heads, self.head_dim))
        self._refuse_shared(x=x)
        rows, threads = _core.TokenRows(attended), torch.get_num_threads()
        self._core.after_attention(index, rows, x.data_ptr(), x.shape[0], threads)
        torch.autograd.graph.increment_version([x])

    def output(self, x: Tensor, *, rows: Tensor | None = None, logits: Tensor | None = None) -> Tensor:
        """Computes what follows the last layer, for its outputs x; arguments and result as of a call."""
        if self.norm is None:
            raise ValueError("norm: got None, expected the norm behind the last layer")
        states = torch.empty_like(x)
        self._check_output(x, states, rows, logits)
        self._core.output(x.data_ptr(), x.shape[0], _output(states, rows, logits), torch.get_num_threads())
        if logits is not None:
            torch.autograd.graph.increment_version([logits])
        return states

    def logits(self, states: Tensor, logits: Tensor) -> None:
        """Computes the logits, float32 [R, head.columns], of the norm's outputs, float32 [R, hidden].

        Rows may have any stride.
        """
        self._check_output(states, None, None, logits)
        self._core.logits(_output(states, None, logits), torch.get_num_threads())
        torch.autograd.graph.increment_version([logits])

    def _check_output(
        self, x: Tensor, states: Tensor | None, rows: Tensor | None, logits: Tensor | None
    ) -> None:
        if not self._places.hold():
            self._prepare()
        if logits is not None and self.head is None:
            raise ValueError("logits: got a tensor, expected None: there is no head")
        columns = 0 if self.head is None else self.head.columns
        OUTPUT.check((x, states, rows, logits, self.hidden, columns))
        if states is None and logits is not None and len(logits) != len(x):
            raise ValueError(f"logits: got {len(logits)} rows, expected {len(x)}, those of states")
        self._refuse_shared(logits=logits)

    def _refuse_shared(self, **written: Tensor | None) -> None:
        for name, tensor in written.items():
            if tensor is not None and self._places.overlap(tensor):
                raise ValueError(
                    f"{name}: got memory that a weight shares, expected memory of its own: it is written to"
                )

    def _checked_index(self, index: int) -> int:
        index = integer("index", index, 0)
        if index >= len(self.layers):
            raise ValueError(f"index: got {index}, expected less than {len(self.layers)}, the layers")
        return index

    def _settle(self, args: tuple[Any, ...], pool: KVPool, dtype: Any) -> None:
        """Checks arguments of a new form."""
        if pool.layout != "packed":
            raise ValueError(f"pool: got layout {pool.layout!r}, expected 'packed'")
        if pool.num_layers != len(self.layers):
            raise ValueError(f"pool: got {pool.num_layers} layers, expected {len(self.layers)}")
        if dtype in FLOAT_DTYPES and dtype != pool.dtype and pool.dtype != torch.int8:
            raise TypeError(f"dtype: got {dtype}, expected {pool.dtype}, the dtype of the pool")
        STEP.settle(args)


def _output(states: Tensor | None, rows: Tensor | None, logits: Tensor | None) -> _core.DecoderOutput:
    return _core.DecoderOutput(
        0 if states is None else states.data_ptr(),
        (0 if rows is None else rows.data_ptr(), 0 if logits is None else logits.shape[0]),
        (0, 0) if logits is None else (logits.data_ptr(), logits.stride(0)),
    )


def _made_again(layers: Sequence[DecoderLayer], options: dict[str, Any]) -> DecoderLayers:
    return DecoderLayers(layers, **options)
