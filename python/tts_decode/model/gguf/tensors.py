"""Maps the tensors of a GGUF file to a transformers model: quantised weights and float parameters.

llama.cpp's converter only reorders whole rows of a matrix that stays quantised, so moving the rows' bytes
undoes it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from .blocks import FileTensor, file_tensors
from .header import Header
from .layouts import experts_part, merged, restored, rows_restored, shape_in_file
from .names import tensor_names
from .reading import not_finite, wrong_shape

_FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class QuantisedPart(NamedTuple):
    """The weight of a module that stays quantised.

    Attributes:
        kind: format of the blocks in the file.
        form: `QuantForm.numbers` of the panels.
        outputs, inputs: the weight's dimensions.
    """

    kind: str
    form: list[int]
    outputs: int
    inputs: int


class Plan(NamedTuple):
    """How a file is read.

    Attributes:
        modules: weights that stay quantised, by module name.
        parts: the tensors of the converted copy, named as in the model, including "panels" and "bias" of
            those modules.
    """

    modules: dict[str, QuantisedPart]
    parts: list[Part]


def plan_of(header: Header, model: nn.Module) -> Plan | None:
    """Returns the plan for keeping weights quantised, or None if that is impossible.

    It is impossible if no weight is quantised, a quantised weight has no module that takes it, or experts are
    not quantised.

    model: built from the file's config, on the meta device.

    Raises:
        ModelLoadError: a tensor's shape differs from the keys' shape, or its kind cannot stay quantised.
    """
    taken = _Taken(header, model)
    floats = [tensor for tensor in taken.tensors if tensor.kind in _FLOATS]
    modules, parts = dict[str, QuantisedPart](), list[Part]()
    for tensor in taken.tensors:
        target, kind = taken.names[tensor.name], tensor.kind
        if kind in _FLOATS:
            continue
        name = _module_of(tensor.name, target, model)
        if name is None:
            return None
        form = _form_of(header, tensor.name, kind)
        *stacked, outputs, inputs = taken.checked_shape(tensor)
        if stacked and outputs % 16:  # experts would share panels
            return None
        shape = prod(stacked) * outputs, inputs
        modules[name] = QuantisedPart(kind, form.numbers, *shape)
        make = partial(_panels, taken, tensor)
        parts.append(Part(f"{name}.panels", torch.uint8, form.panels_shape(*shape), make))
    if not modules or any(_is_stack(tensor.name) for tensor in floats):
        return None
    for tensor in floats:
        name, _, leaf = taken.names[tensor.name].rpartition(".")
        if part := experts_part(tensor.name):
            parts.append(_bias_part(taken, tensor, f"{name}.{part}", modules))
        elif leaf == "bias" and name in modules:
            parts.append(_bias_part(taken, tensor, name, modules))
        else:  # a vector is kept in float32
            vector = len(taken.shapes[taken.names[tensor.name]]) < 2
            parts.append(_float_part(taken, [tensor], None if not vector else torch.float32))
    return Plan(modules, parts)


def float_parts(header: Header, model: nn.Module) -> list[Part]:
    """Returns all parameters of a model, dequantised to float32. model: as for `plan_of`.

    Raises:
        ModelLoadError: a tensor's shape differs from the keys' shape.
    """
    taken = _Taken(header, model)
    filling: dict[str, list[FileTensor]] = {}
    for tensor in taken.tensors:
        filling.setdefault(taken.names[tensor.name], []).append(tensor)
    return [_float_part(taken, tensors, torch.float32) for tensors in filling.values()]


class _Taken:
    """The tensors of a file that a model uses.

    Attributes:
        tensors: of the file. names: tensor -> the model's parameter. shapes: of the parameters.
        heads: number of query heads and of key heads.
    """

    def __init__(self, header: Header, model: Any) -> None:
        self.header, self.layout = header, header.architecture.layout
        self.names = tensor_names(header, model)
        self.shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
        self.tensors = [tensor for tensor in file_tensors(header) if tensor.name in self.names]
        queries = model.config.num_attention_heads
        self.heads = queries, getattr(model.config, "num_key_value_heads", None) or queries

    def checked_shape(self, tensor: FileTensor) -> tuple[int, ...]:
        """Returns the tensor's shape in the file; raises ModelLoadError if the keys imply another."""
        target = self.names[tensor.name]
        expected = shape_in_file(self.layout, tensor.name, self.shapes[target])
        if tensor.shape != expected:
            raise wrong_shape(self.header.file, target, tensor.shape, expected)
        return tensor.shape

    def numbers(self, tensor: FileTensor) -> np.ndarray[Any, Any]:
        return restored(self.layout, tensor.name, tensor.numbers(), self.heads)


def _is_stack(name: str) -> bool:
    """Whether a tensor holds the weights of all experts."""
    return experts_part(name) is not None and name.endswith(".weight")


def _module_of(name: str, target: str, model: nn.Module) -> str | None:
    """Returns the module for a quantised tensor ("gate", "up" or "down" if it holds all experts), or None."""
    path, _, leaf = target.rpartition(".")
    if part := experts_part(name):
        return f"{path}.{part}" if _is_stack(name) else None
    module = model.get_submodule(path)
    stays = type(module) is nn.Linear or isinstance(module, nn.Embedding)
    return path if stays and leaf == "weight" else None


def _form_of(header: Header, name: str, kind: str) -> QuantForm:
    if kind not in KINDS:
        raise ModelLoadError(
            f"model: {header.file} holds {name} in {kind}, which does not stay quantised (those that do: "
            f"{', '.join(KINDS)}); pass weights='bfloat16' or weights='float32' to dequantise the file"
        )
    return KINDS[kind].form


def _panels(taken: _Taken, tensor: FileTensor) -> Tensor:
    blocks = rows_restored(taken.layout, tensor.name, tensor.blocks(), taken.heads)
    rows = np.ascontiguousarray(blocks.reshape(-1, blocks.shape[-1]))
    try:
        return QuantisedWeight.from_gguf(tensor.kind, torch.from_numpy(rows)).panels
    except ValueError as cause:  # a scale is not finite: the shape was checked before
        raise not_finite(taken.header.file, tensor.name) from cause


def _bias_part(taken: _Taken, tensor: FileTensor, module: str, modules: Mapping[str, QuantisedPart]) -> Part:
    """Returns the bias of a quantised weight: float32, all experts concatenated, padded to whole panels."""
    count = prod(taken.checked_shape(tensor))
    panels, *_ = QuantForm.of(modules[module].form).panels_shape(count, 1)

    def make() -> Tensor:
        made = _finite(taken, tensor, taken.numbers(tensor).reshape(-1), torch.float32)
        return nn.functional.pad(made, (0, panels * 16 - count))

    return Part(f"{module}.bias", torch.float32, (panels * 16,), make)


def _float_part(taken: _Taken, tensors: Sequence[FileTensor], dtype: torch.dtype | None) -> Part:
    """Returns the parameter that the tensors fill. dtype: None keeps the file's dtype."""
    target = taken.names[tensors[0].name]
    shape, kept = taken.shapes[target], dtype or _FLOATS[tensors[0].kind]
    for tensor in tensors:
        taken.checked_shape(tensor)

    def make() -> Tensor:
        experts = {experts_part(tensor.name) or "": taken.numbers(tensor) for tensor in tensors}
        values = experts[""] if "" in experts else merged(taken.layout, experts)
        return _finite(taken, tensors[0], values.reshape(shape), kept)

    return Part(target, kept, tuple(shape), make)


def _finite(taken: _Taken, tensor: FileTensor, values: np.ndarray[Any, Any], dtype: torch.dtype) -> Tensor:
    made = torch.from_numpy(np.array(values)).to(dtype)
    if not torch.isfinite(made).all():
        raise not_finite(taken.header.file, tensor.name)
    return made
