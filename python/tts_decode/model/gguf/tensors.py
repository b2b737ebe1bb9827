"""What the tensors of a GGUF file become in a transformers model: quantised weights and float parameters.

The names and the layouts are those of transformers' conversion (`modeling_gguf_pytorch_utils`). What it does
to a matrix that stays quantised moves whole rows, so the bytes of the rows are moved.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from math import prod
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from tts_kernels import QuantForm, QuantisedWeight
from tts_kernels.layers.gguf_blocks import KINDS

from ...errors import ModelLoadError
from ..tensor_file import Part
from .header import Header
from .names import processor_of, tensor_names
from .reading import not_finite, wrong_shape

_STACKS = re.compile(r"\.ffn_(gate|up|down)_exps\.weight$")
_FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class QuantisedPart(NamedTuple):
    """The weight of a module that stays quantised.

    Attributes:
        kind: of the blocks in the file.
        form: `QuantForm.numbers` of the panels.
        outputs, inputs: of the weight.
    """

    kind: str
    form: list[int]
    outputs: int
    inputs: int


class Plan(NamedTuple):
    """How a file is read.

    Attributes:
        modules: what stays quantised, by the names of modules.
        parts: the tensors of the converted copy by the names that they have in the model, "panels" and "bias"
            of those modules among them.
    """

    modules: dict[str, QuantisedPart]
    parts: list[Part]


def plan_of(header: Header, model: nn.Module, config: Mapping[str, Any]) -> Plan | None:
    """None where no weight would stay quantised, one that is quantised has no module that would take it, or
    experts are not.

    model: of the file's config, on the meta device.

    Raises:
        ModelLoadError: a tensor's shape is not that of the keys, or its kind is none that stays quantised.
    """
    from gguf import GGUFReader

    names, processor = tensor_names(header, model, config), processor_of(header, config)
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    modules, parts = dict[str, QuantisedPart](), list[Part]()
    # Writes would not reach the file: there are none, but torch wants memory that could be written.
    tensors = [tensor for tensor in GGUFReader(header.file, mode="c").tensors if tensor.name in names]
    for tensor in tensors:
        target, kind = names[tensor.name], tensor.tensor_type.name
        if kind in _FLOATS:
            continue
        name = _module_of(tensor.name, target, model)
        if name is None:
            return None
        form = _form_of(header, tensor.name, kind)
        *stacked, outputs, inputs = reversed(tensor.shape.tolist())
        expected = _shape_in_file(tensor.name, shapes[target])
        if (*stacked, outputs, inputs) != expected:
            raise wrong_shape(header.file, target, (*stacked, outputs, inputs), expected)
        if stacked and outputs % 16:  # experts would share panels
            return None
        shape = prod(stacked) * outputs, inputs
        modules[name] = QuantisedPart(kind, form.numbers, *shape)
        make = partial(_panels, header, processor, tensor)
        parts.append(Part(f"{name}.panels", torch.uint8, form.panels_shape(*shape), make))
    floats = [tensor for tensor in tensors if tensor.tensor_type.name in _FLOATS]
    if not modules or any(_STACKS.search(tensor.name) for tensor in floats):
        return None
    for tensor in floats:
        target = names[tensor.name]
        parts.append(_float_part(header, processor, tensor, target, shapes[target], modules))
    return Plan(modules, parts)


def _module_of(name: str, target: str, model: nn.Module) -> str | None:
    """The module that takes a quantised tensor, of all experts' one "gate", "up" or "down"; None: none."""
    path, _, leaf = target.rpartition(".")
    if stack := _STACKS.search(name):
        return f"{path}.{stack[1]}"
    module = model.get_submodule(path)
    stays = type(module) is nn.Linear or isinstance(module, nn.Embedding)
    return path if stays and leaf == "weight" else None


def _shape_in_file(name: str, shape: torch.Size) -> tuple[int, ...]:
    """Of a tensor whose parameter has this shape: experts' gate and up are one parameter."""
    stack = _STACKS.search(name)
    if stack and stack[1] != "down":
        return shape[0], shape[1] // 2, shape[2]
    return tuple(shape)


def _form_of(header: Header, name: str, kind: str) -> QuantForm:
    if kind not in KINDS:
        raise ModelLoadError(
            f"model: {header.file} holds {name} in {kind}, which does not stay quantised (those that do: "
            f"{', '.join(KINDS)}); pass weights='bfloat16' or weights='float32' to dequantise the file"
        )
    return KINDS[kind].form


def _panels(header: Header, processor: Any, tensor: Any) -> Tensor:
    blocks = processor.process(weights=tensor.data, name=tensor.name).weights
    blocks = blocks.reshape(-1, blocks.shape[-1])
    try:
        kind = tensor.tensor_type.name
        return QuantisedWeight.from_gguf(kind, torch.from_numpy(np.ascontiguousarray(blocks))).panels
    except ValueError as cause:  # a scale that is not finite: the shape was looked at
        raise not_finite(header.file, tensor.name) from cause


def _float_part(
    header: Header,
    processor: Any,
    tensor: Any,
    target: str,
    shape: torch.Size,
    modules: Mapping[str, QuantisedPart],
) -> Part:
    """A vector is kept in float32, as are biases of quantised weights, which fill whole panels."""
    dtype = torch.float32 if len(shape) < 2 else _FLOATS[tensor.tensor_type.name]
    name, _, leaf = target.rpartition(".")
    filled = shape
    if leaf == "bias" and name in modules:
        panels, *_ = QuantForm.of(modules[name].form).panels_shape(shape[0], 1)
        filled = torch.Size([panels * 16])

    def make() -> Tensor:
        from gguf import dequantize

        values = processor.process(
            weights=dequantize(tensor.data, tensor.tensor_type), name=tensor.name
        ).weights
        if values.shape != shape:
            raise wrong_shape(header.file, target, values.shape, shape)
        made = torch.from_numpy(np.array(values)).to(dtype)
        if not torch.isfinite(made).all():
            raise not_finite(header.file, tensor.name)
        return nn.functional.pad(made, (0, filled[0] - shape[0])) if filled != shape else made

    return Part(target, dtype, tuple(filled), make)
