"""The kinds of a loaded model's weights, and the memory that they take."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tts_kernels import PackedWeight

from .packed_model import PackedModel
from .packed_modules import Packed
from .quantised_modules import Quantised


def weight_bytes(model: Any) -> dict[str, int]:
    """Returns the bytes of parameters and quantised weights, by kind; shared memory counts once."""
    found: dict[int, tuple[str, int]] = {}
    for module in model.modules():
        for tensor in module.parameters(recurse=False):
            found[tensor.data_ptr()] = str(tensor.dtype).removeprefix("torch."), tensor.nbytes
        if isinstance(module, Quantised):
            found[module.panels.data_ptr()] = module.kind, module.panels.nbytes
        if isinstance(module, Packed):
            for panels in map(module.panels, module.parts):
                found[panels.data_ptr()] = str(panels.dtype).removeprefix("torch."), panels.nbytes
    kinds: dict[str, int] = {}
    for kind, size in found.values():
        kinds[kind] = kinds.get(kind, 0) + size
    return kinds


def packed_bytes(model: Any, packed: PackedModel | None) -> int:
    """Returns the bytes of the copies that the packed path holds besides the model."""
    if packed is None:
        return 0
    own = {buffer.untyped_storage().data_ptr() for buffer in model.buffers()}
    copies = _copies(packed)
    return sum(tensor.nbytes for tensor in copies if tensor.untyped_storage().data_ptr() not in own)


def _copies(packed: PackedModel) -> list[Tensor]:
    sides: list[Any] = [packed.head]
    for layer in packed.layers:
        sides += [layer.qkv, layer.o, layer.gate_up, layer.down]
        if layer.experts is not None:
            sides += [layer.experts.router, *layer.experts.gate_up, *layer.experts.down]
    weights = [weight for side in sides for weight in (side if isinstance(side, tuple) else [side])]
    return [weight.panels for weight in weights if isinstance(weight, PackedWeight)]
