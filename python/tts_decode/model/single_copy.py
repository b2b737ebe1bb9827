"""Models whose only copy of the weights is the packed one: models whose weights nobody else holds."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .families.catalogue import family_of
from .families.conditions import why_general
from .families.reading import is_mixture, linears_of, part
from .packed_clamped_experts import PackedClampedExperts
from .packed_modules import (
    Packed,
    PackedEmbedding,
    PackedExperts,
    PackedLinear,
    Tie,
    pack_module,
    share_panels,
)
from .quantised_modules import Quantised
from .support.named_features import text_body


def pack_modules(model: Any) -> None:
    """Packs in place the weights that the packed path reads, if the model runs over it.

    The model must be freshly loaded: nobody else holds its weights, whose memory is reordered.
    """
    floats = {weight.dtype for weight in model.parameters()}
    if model.device.type != "cpu" or not floats <= {torch.float32, torch.bfloat16} or why_general(model):
        return
    base = text_body(model)
    family = family_of(base)
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    if type(head) is nn.Linear:
        tied = head.weight is table.weight
        pack_module(head, PackedLinear, {"weight": Tie()})
        if tied:
            share_panels(table, PackedEmbedding, model.get_output_embeddings())
    for layer in base.layers:
        mlp = layer.mlp
        if is_mixture(family, mlp) and hasattr(mlp.experts, "gate_up_proj"):
            kind = PackedClampedExperts if family.clamped_experts else PackedExperts
            pack_module(mlp.experts, kind, {"gate_up_proj": Tie(), "down_proj": Tie()})
        for linear in linears_of(family, layer).values():
            if type(linear) is nn.Linear and linear is not part(mlp, family.shared_gate):
                pack_module(linear, PackedLinear, {"weight": Tie()})
    if not any(isinstance(module, Quantised) for module in model.modules()):
        _leave_files(model)
    model.requires_grad_(False)


def _leave_files(model: nn.Module) -> None:
    """Copies what remains in shared memory, for example in a mapped file of all weights."""
    for module in model.modules():
        for name, weight in module.named_parameters(recurse=False):
            if weight.untyped_storage().nbytes() > weight.nbytes:
                setattr(module, name, nn.Parameter(weight.detach().clone()))


def unpack_modules(model: Any) -> None:
    """Restores the weights of all modules, for a model that runs over the general path."""
    for module in list(model.modules()):
        if isinstance(module, Packed):
            module.unpack()
