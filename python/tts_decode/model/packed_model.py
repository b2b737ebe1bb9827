"""The forward of Llama-like models over packed weights: the transformers model's numbers with less work.

What it serves is a matter of the model's classes, which are looked at layer by layer: attention with
projections q, k, v, o, rotary positions over whole heads and maybe norms of the heads of q and k, a SwiGLU
MLP, RMS norms before both. Everything between products is float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers.activations import SiLUActivation

from tts_kernels import (
    DecoderLayer,
    DecoderLayers,
    KVPool,
    PackedWeight,
    TreePlan,
    packed_linear,
    rms_norm,
    rotate_qkv,
)

from .buffers import Buffers

# Index of a layer, q [T, heads, d], k and v [T, kv_heads, d], logit scale, window -> [T, heads, d]
Attend = Callable[[int, Tensor, Tensor, Tensor, float, int | None], Tensor]
# The packed pool, int32 [T] slots of the tokens, and the plan of their queries
Dense = tuple[KVPool, Tensor, TreePlan]

_BASES = ("LlamaModel", "MistralModel", "Qwen2Model", "Qwen3Model")  # differ in biases, windows, norms
_PARTS = (
    nn.Linear,
    nn.Embedding,
    nn.ModuleList,
    nn.SiLU,
    SiLUActivation,
)  # beside classes of the model's own


class PackedLayers:
    """The forward over packed layers of a base model, and over its final norm."""

    def __init__(self, base: Any, layers: Sequence[DecoderLayer], head: PackedWeight | None = None) -> None:
        """layers: of `pack_layer`, those of the base model in order or some of them."""
        attention = base.layers[0].self_attn
        self.head_dim: int = attention.head_dim
        self.num_q_heads = attention.q_proj.out_features // self.head_dim
        self.num_kv_heads = attention.k_proj.out_features // self.head_dim
        self._eps: float = base.norm.variance_epsilon
        self._norm = base.norm.weight.detach().float()
        self._rotary = base.rotary_emb
        self._layers = DecoderLayers(
            layers,
            num_q_heads=self.num_q_heads,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            eps=self._eps,
            norm=self._norm,
            head=head,
        )

    @property
    def layers(self) -> tuple[DecoderLayer, ...]:
        return self._layers.layers

    def hidden_states(
        self,
        embeds: Tensor,
        positions: Tensor,
        dtype: torch.dtype,
        attend: Attend | Dense,
        *,
        rows: Tensor | None = None,
        logits: Tensor | None = None,
    ) -> Tensor:
        """Last hidden states, after the final norm, float32 [T, hidden].

        embeds: float32 [T, hidden], becomes the output of the last layer. positions: int64 [T]. dtype: of
        queries, keys and values.
        attend: how, or where to all that the plan has.
        logits: float32 [R, columns of the head], where those of int64 `rows` [R] go; default: of all tokens.
        """
        cos, sin = self._rotary(embeds, positions[None])
        cos, sin = cos[0].contiguous(), sin[0].contiguous()
        if isinstance(attend, tuple):
            states = self._layers(embeds, cos, sin, *attend, dtype, rows=rows, logits=logits)
            assert states is not None  # there is a norm
            return states
        self._attend_with(attend, embeds, cos, sin, dtype)
        states = self.final_norm(embeds)
        if logits is not None and self._layers.head is not None:
            packed_linear(states if rows is None else states[rows], self._layers.head, out=logits)
        return states

    def final_norm(self, states: Tensor) -> Tensor:
        """Of outputs of the last layer, float32 [T, hidden]."""
        return rms_norm(states, self._norm, self._eps)

    def _attend_with(self, attend: Attend, x: Tensor, cos: Tensor, sin: Tensor, dtype: torch.dtype) -> None:
        """What `DecoderLayers` does, with other attention."""
        for index, layer in enumerate(self._layers.layers):
            qkv = packed_linear(rms_norm(x, layer.input_norm, self._eps), layer.qkv)
            q, k, v = rotate_qkv(
                qkv,
                cos,
                sin,
                self.num_q_heads,
                self.num_kv_heads,
                dtype,
                q_norm=layer.q_norm,
                k_norm=layer.k_norm,
                eps=self._eps,
            )
            attended = attend(index, q, k, v, layer.scale, layer.window)
            packed_linear(attended.flatten(1), layer.o, add_to=x)
            gated = packed_linear(rms_norm(x, layer.mlp_norm, self._eps), layer.gate_up)
            packed_linear(gated, layer.down, add_to=x)


class PackedModel(PackedLayers):
    """Weights of a model as the kernels read them: a copy, made at an epoch of the weights."""

    def __init__(self, model: Any, windows: Sequence[int | None], epoch: int) -> None:
        """windows: of each layer's attention."""
        base = model.base_model
        head = model.get_output_embeddings()
        self._head = None if head is None else PackedWeight.pack(head.weight.detach())
        layers = [pack_layer(*pair) for pair in zip(base.layers, windows, strict=True)]
        super().__init__(base, layers, self._head)
        self._vocab: int = model.config.get_text_config(decoder=True).vocab_size
        self._buffers = Buffers()
        self.epoch = epoch
        self.numbers = _numbers(model)

    def forward(
        self,
        embeds: Tensor,
        positions: Tensor,
        dtype: torch.dtype,
        attend: Attend | Dense,
        rows: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """`hidden_states`, and float32 [R, vocab] logits of int64 `rows` [R], None: of all tokens."""
        count = len(positions) if rows is None else len(rows)
        if not count:
            return self.hidden_states(embeds, positions, dtype, attend), torch.empty((0, self._vocab))
        assert self._head is not None  # logits are asked of models with LM head only
        logits = self._buffers.empty(count, self._head.columns)
        states = self.hidden_states(embeds, positions, dtype, attend, rows=rows, logits=logits)
        return states, logits if self._head.columns == self._vocab else logits[:, : self._vocab]

    def logits(self, hidden: Tensor) -> Tensor:
        """float32 [rows, vocab] of last hidden states [rows, hidden]."""
        assert self._head is not None  # asked of models with LM head only
        return packed_linear(hidden, self._head, out=self._buffers.empty(len(hidden), self._head.columns))


_made: WeakKeyDictionary[Any, PackedModel] = WeakKeyDictionary()  # by their models


def pack_model(model: Any, windows: Sequence[int | None], epoch: int) -> PackedModel:
    """One for all decoders of a model."""
    made = _made.get(model)
    if made is None or made.epoch != epoch:
        made = _made[model] = PackedModel(model, windows, epoch)
    return made


def packed_others(model: Any) -> bool:
    """Whether the numbers that were packed for a decoder of the model are no longer those that it has."""
    made = _made.get(model)
    return made is not None and made.numbers != _numbers(model)


def serves(model: Any) -> bool:
    """Whether `PackedModel` computes what the model does."""
    base = model.base_model
    if type(base).__name__ not in _BASES or base.config.hidden_act != "silu":
        return False
    linears = [module for module in base.modules() if hasattr(module, "in_features")]
    head = model.get_output_embeddings()
    if head is not None:
        linears.append(head)
        if head.bias is not None:
            return False
    return (
        all(type(m).__module__ == type(base).__module__ or type(m) in _PARTS for m in base.modules())
        and not any("forward" in vars(module) for module in model.modules())  # replaced on the object
        and all(type(linear) is nn.Linear for linear in linears)  # no adapters, no quantised ones
        and base.config.hidden_size % 16 == 0
        and base.config.intermediate_size % 16 == 0
        and not any(weight.is_inference() for weight in model.parameters())  # have no versions to look at
        and all(type(weight.data) is Tensor for weight in model.parameters())  # none that unpacks itself
        and all(linear.in_features % 2 == 0 for linear in linears)
        and not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
        and len({getattr(m, "variance_epsilon", base.norm.variance_epsilon) for m in base.modules()}) == 1
        and len({layer.self_attn.head_dim for layer in base.layers}) == 1
        and all(map(_serves_biases, base.layers))
    )


def _serves_biases(layer: Any) -> bool:
    """Whether a layer has biases where a packed one does: of q, k and v together, and of o."""
    attention, mlp = layer.self_attn, layer.mlp
    biased = {part.bias is None for part in (attention.q_proj, attention.k_proj, attention.v_proj)}
    return len(biased) == 1 and all(part.bias is None for part in (mlp.gate_proj, mlp.up_proj, mlp.down_proj))


def _numbers(model: Any) -> list[float]:
    """Sums of the weights, by which writes through `.data` are seen, and what is set on modules, such as
    scales and windows: neither changes a version."""
    sums = [float(weight.detach().sum(dtype=torch.float32)) for weight in model.parameters()]
    values = (value for module in model.modules() for value in vars(module).values())
    return sums + [value for value in values if type(value) in (int, float)]


def pack_layer(layer: Any, window: int | None) -> DecoderLayer:
    """window: of its attention."""
    attention, mlp = layer.self_attn, layer.mlp
    projections = attention.q_proj, attention.k_proj, attention.v_proj
    bias = None
    if attention.q_proj.bias is not None:
        bias = torch.cat([projection.bias.detach() for projection in projections])
    return DecoderLayer(
        layer.input_layernorm.weight.detach().float(),
        PackedWeight.pack(torch.cat([projection.weight.detach() for projection in projections]), bias),
        _norm(attention, "q_norm"),
        _norm(attention, "k_norm"),
        PackedWeight.pack(attention.o_proj.weight.detach(), _detached(attention.o_proj.bias)),
        layer.post_attention_layernorm.weight.detach().float(),
        PackedWeight.pack_gated(mlp.gate_proj.weight.detach(), mlp.up_proj.weight.detach()),
        PackedWeight.pack(mlp.down_proj.weight.detach()),
        attention.scaling,
        window,
    )


def _norm(attention: Any, name: str) -> Tensor | None:
    norm = getattr(attention, name, None)
    return None if norm is None else norm.weight.detach().float()


def _detached(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.detach()
