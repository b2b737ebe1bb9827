"""The forward of a model over packed weights: the transformers model's results with less work.

`families` declares what a family's layers compute. Everything between products is float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from tts_kernels import DecoderLayer, DecoderLayers, KVPool, TreePlan, Weight

from .buffers import Buffers
from .families.catalogue import family_of
from .families.reading import (
    angles,
    embedding_factor,
    epsilon_of,
    logit_settings,
    norm_of,
    pack_layer,
    weight_of,
)
from .layer_states import LayerStates
from .support.features import AttentionCall
from .support.named_features import text_body

# Index of a layer, q [T, heads, d], k and v [T, kv_heads, d], logit scale, window, soft cap, sinks [heads] ->
# [T, heads, d]
Attend = Callable[[int, Tensor, Tensor, Tensor, float, int | None, float | None, Tensor | None], Tensor]
# The packed pool, int32 [T] slots of the tokens, and the plan of their queries
Dense = tuple[KVPool, Tensor, TreePlan]


class PackedLayers:
    """The forward over packed layers of a base model, and over its final norm."""

    def __init__(
        self,
        base: Any,
        layers: Sequence[DecoderLayer],
        head: Weight | None = None,
        logits: tuple[float, float | None] = (1.0, None),
    ) -> None:
        """layers: of `pack_layer`, all or some of the base model's, in order. logits: factor and soft cap."""
        self._base, self._family = base, family_of(base)
        attention = base.layers[0].self_attn
        head_dim: int = attention.head_dim
        num_q_heads = attention.o_proj.in_features // head_dim
        cos, _ = angles(self._family, base, torch.zeros(1, 1), torch.zeros(1, dtype=torch.long), 1)
        self._layers = DecoderLayers(
            layers,
            num_q_heads=num_q_heads,
            num_kv_heads=(layers[0].qkv_outputs // head_dim - num_q_heads) // 2,
            head_dim=head_dim,
            eps=epsilon_of(base.norm),
            norm=norm_of(self._family, base.norm),
            head=head,
            rotary_dim=cos.shape[-1],
            logit_factor=logits[0],
            logit_soft_cap=logits[1],
        )

    @property
    def head(self) -> Weight | None:
        return self._layers.head

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
        experts: Tensor | None = None,
        kept: LayerStates | None = None,
    ) -> Tensor:
        """Returns the last hidden states, after the final norm, float32 [T, hidden].

        embeds: float32 [T, hidden], becomes the output of the last layer. positions: int64 [T]. dtype: of
        queries, keys and values.
        attend: the attention function, or the pool, slots and plan for attention over everything in the plan.
        logits: float32 [R, columns of the head], output for int64 `rows` [R]; default: of all tokens.
        experts: int64 [T, top_k], of each token, for attention over everything in the plan; default: those of
        the routers.
        kept: takes the inputs of the layers, which then do not run in one call.
        """
        cos, sin = angles(self._family, self._base, embeds, positions, self._layers.tables)
        if isinstance(attend, tuple):
            states = self._layers(embeds, cos, sin, *attend, dtype, rows=rows, logits=logits, experts=experts)
            assert states is not None  # there is a norm
            return states
        for index, layer in enumerate(self.layers):
            if kept is not None:
                kept.take(index, embeds)
            q, k, v = self._layers.before_attention(index, embeds, cos, sin, dtype)
            attended = attend(index, q, k, v, layer.scale, layer.window, layer.soft_cap, layer.sinks)
            self.after_attention(index, embeds, attended)
        states = self._layers.output(embeds, rows=rows, logits=logits)
        if kept is not None:
            kept.take(len(self.layers), states)
        return states

    def after_attention(self, index: int, x: Tensor, attended: Tensor) -> None:
        """Computes the rest of a layer: x float32 [T, hidden], its inputs, becomes its outputs.

        attended: [T, heads, head_dim].
        """
        self._layers.after_attention(index, x, attended)

    def first_inputs(self, embeds: Tensor) -> Tensor:
        """Returns the first layer's inputs, float32 [T, hidden], for the model's embeddings of tokens."""
        factor = embedding_factor(self._family, self._base)
        return embeds.float() if factor == 1.0 else embeds.float() * factor

    def final_norm(self, states: Tensor) -> Tensor:
        """Applies the final norm to outputs of the last layer, float32 [T, hidden]."""
        return self._layers.output(states)

    def logits_into(self, states: Tensor, logits: Tensor) -> None:
        """Writes the logits of last hidden states."""
        self._layers.logits(states, logits)


class PackedModel(PackedLayers):
    """Weights of a model as the kernels read them, at an epoch of the weights.

    Quantised weights are the model's own, others are a copy.
    """

    def __init__(self, model: Any, calls: Sequence[AttentionCall], epoch: int) -> None:
        """calls: of each layer's attention."""
        base = text_body(model)
        family = family_of(base)
        head = model.get_output_embeddings()
        self._head = None if head is None else weight_of(head)
        layers = [pack_layer(family, *pair) for pair in zip(base.layers, calls, strict=True)]
        super().__init__(base, layers, self._head, logit_settings(family, model))
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
        kept: LayerStates | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Returns `hidden_states`, and float32 [R, vocab] logits of int64 `rows` [R], None: of all tokens."""
        embeds = self.first_inputs(embeds)
        count = len(positions) if rows is None else len(rows)
        if not count:
            states = self.hidden_states(embeds, positions, dtype, attend, kept=kept)
            return states, torch.empty((0, self._vocab))
        assert self._head is not None  # logits are asked of models with LM head only
        logits = self._buffers.empty(count, self._head.columns)
        states = self.hidden_states(embeds, positions, dtype, attend, rows=rows, logits=logits, kept=kept)
        return states, logits if self._head.columns == self._vocab else logits[:, : self._vocab]

    def logits(self, hidden: Tensor) -> Tensor:
        """Returns float32 [rows, vocab] for last hidden states [rows, hidden]."""
        assert self._head is not None  # asked of models with LM head only
        logits = self._buffers.empty(len(hidden), self._head.columns)
        self.logits_into(hidden, logits)
        return logits[:, : self._head.outputs]


_made: WeakKeyDictionary[Any, PackedModel] = WeakKeyDictionary()  # by model


def pack_model(model: Any, calls: Sequence[AttentionCall], epoch: int) -> PackedModel:
    """Returns one packed model for all decoders of a model."""
    made = _made.get(model)
    if made is None or made.epoch != epoch:
        made = _made[model] = PackedModel(model, calls, epoch)
    return made


def packed_others(model: Any) -> bool:
    """Whether the model's numbers differ from those that were packed for a decoder."""
    made = _made.get(model)
    return made is not None and made.numbers != _numbers(model)


def _numbers(model: Any) -> list[float]:
    """Returns sums of the weights, and settings such as scales and windows.

    The sums detect writes through `.data`; neither these nor the settings change a version.
    """
    sums = [float(weight.detach().sum(dtype=torch.float32)) for weight in model.parameters()]
    values = [value for module in model.modules() for value in vars(module).values()]
    values += logit_settings(family_of(text_body(model)), model)
    return sums + [value for value in values if type(value) in (int, float)]
