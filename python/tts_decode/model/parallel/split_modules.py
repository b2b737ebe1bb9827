"""Reduces the linear layers of a model that runs over packed weights to one rank's part, in place."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from tts_kernels import QuantisedWeight

from ...errors import UnsupportedModelError
from ..families.catalogue import family_of
from ..families.declaration import Family
from ..families.reading import is_mixture, part
from ..packed_modules import PackedLinear, Tie, pack_module
from ..quantised_modules import QuantisedLinear, weight_shape
from ..support.named_features import text_body
from .ranks import bounds

PANEL = 16  # rows of a weight stored together: no part begins between them
Slices = list[slice]


def refuse_unsplit(model: Any, size: int) -> None:
    """Raises UnsupportedModelError or ValueError, by name, for what `size` ranks cannot hold in parts."""
    base = text_body(model)
    family, name = family_of(base), type(model).__name__
    for index, layer in enumerate(base.layers):
        if is_mixture(family, layer.mlp):
            raise _refused(name, f"layer {index} has a mixture of experts")
        if len(family.qkv) != 3:
            raise _refused(name, f"{family.qkv[0]} holds queries, keys and values in one module")
        for norm in family.head_norms or ():
            weight = part(layer.self_attn, norm).weight
            if weight.numel() != layer.self_attn.head_dim:
                raise _refused(name, f"layer {index} has a norm over all heads together, {norm}")
        for module in _row_parallel(family, layer):
            _refuse_groups(name, index, *module, size)


def split_modules(model: Any, rank: int, size: int) -> list[int]:
    """Keeps this rank's heads and columns in each layer, and its rows of the head.

    What only one rank adds, such as the bias after a sum, stays on rank 0. Embeddings and norms stay whole.

    Returns the rows of the head on each rank; [] if there is no head.
    """
    base = text_body(model)
    family = family_of(base)
    for layer in base.layers:
        attention, mlp = layer.self_attn, layer.mlp
        for name in family.qkv:
            own = bounds(weight_shape(part(attention, name))[0], size)[rank]
            setattr(attention, name, _of_rows(part(attention, name), [slice(*own)]))
        sides = 2 if family.gated and len(family.gate_up) == 1 else 1
        for name in family.gate_up:
            width = weight_shape(part(mlp, name))[0] // sides
            begin, end = bounds(width, size)[rank]
            rows = [slice(side * width + begin, side * width + end) for side in range(sides)]
            setattr(mlp, name, _of_rows(part(mlp, name), rows))
        for holder, name in ((attention, "o_proj"), (mlp, family.down)):
            linear = part(holder, name)
            own = bounds(weight_shape(linear)[1], size)[rank]
            setattr(holder, name, _of_inputs(linear, slice(*own), keeps_bias=rank == 0))
        if family.sinks is not None:
            sinks = getattr(attention, family.sinks)
            own = bounds(len(sinks), size)[rank]
            setattr(attention, family.sinks, nn.Parameter(sinks.detach()[slice(*own)].clone()))
    head = model.get_output_embeddings()
    if head is None:
        return []
    parts = bounds(weight_shape(head)[0], size, PANEL)
    model.set_output_embeddings(_of_rows(head, [slice(*parts[rank])]))
    return [end - begin for begin, end in parts]


def _row_parallel(family: Family, layer: Any) -> list[tuple[str, Any]]:
    return [("o_proj", layer.self_attn.o_proj), (family.down, part(layer.mlp, family.down))]


def _refuse_groups(model: str, index: int, name: str, linear: Any, size: int) -> None:
    if not isinstance(linear, QuantisedLinear):
        return
    weight = linear.quantised
    if weight.order is not None:
        raise _refused(model, f"{name} of layer {index} has its inputs in another order (GPTQ's g_idx)")
    unit = weight.form.block_inputs
    if weight.inputs % (size * unit):
        raise UnsupportedModelError(
            f"device_mesh: {model}: {name} of layer {index} has {weight.inputs} inputs, which {size} ranks "
            f"do not divide into whole groups of {unit} quantised numbers: use fewer ranks, or other weights"
        )


def _refused(model: str, what: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"device_mesh: {model}: {what}, which is not split over ranks: run it without a mesh"
    )


def _of_rows(linear: Any, rows: Slices) -> nn.Module:
    """Returns the layer with only these outputs."""
    if isinstance(linear, QuantisedLinear):
        return QuantisedLinear(_quantised_rows(linear.quantised, rows), linear.kind)
    weight, bias = _floats(linear)
    chosen = torch.cat([weight[one] for one in rows])
    return _linear(linear, chosen, None if bias is None else torch.cat([bias[one] for one in rows]))


def _of_inputs(linear: Any, inputs: slice, *, keeps_bias: bool) -> nn.Module:
    """Returns the layer with only these inputs."""
    if isinstance(linear, QuantisedLinear):
        return QuantisedLinear(_quantised_inputs(linear.quantised, inputs, keeps_bias), linear.kind)
    weight, bias = _floats(linear)
    return _linear(linear, weight[:, inputs].clone(), bias if keeps_bias else None)


def _quantised_rows(weight: QuantisedWeight, rows: Slices) -> QuantisedWeight:
    """Returns rows of a weight. rows: each slice begins a panel."""
    index = torch.cat([torch.arange(*one.indices(weight.outputs)) for one in rows])
    panels = index[::PANEL] // PANEL
    bias = None if weight.bias is None else weight.bias.view(-1, PANEL)[panels].flatten()
    return replace(weight, panels=weight.panels[panels], bias=bias, outputs=len(index))


def _quantised_inputs(weight: QuantisedWeight, inputs: slice, keeps_bias: bool) -> QuantisedWeight:
    unit = weight.form.block_inputs
    panels = weight.panels[:, inputs.start // unit : inputs.stop // unit].contiguous()
    bias = weight.bias if keeps_bias else None
    return replace(weight, panels=panels, bias=bias, inputs=inputs.stop - inputs.start)


def _floats(linear: Any) -> tuple[Tensor, Tensor | None]:
    packed = isinstance(linear, PackedLinear)
    weight = linear.unpacked("weight") if packed else linear.weight.detach()
    return weight, None if linear.bias is None else linear.bias.detach()


def _linear(like: Any, weight: Tensor, bias: Tensor | None) -> nn.Module:
    """Returns a linear layer of the class of `like`."""
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    made.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
    if bias is not None:
        made.bias = nn.Parameter(bias.clone(), requires_grad=False)
    if isinstance(like, PackedLinear):
        pack_module(made, PackedLinear, {"weight": Tie()})
    return made.eval()
