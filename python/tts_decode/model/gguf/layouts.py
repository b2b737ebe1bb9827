"""Layouts in which a GGUF file's tensors differ from the parameters of a transformers model.

llama.cpp's converter writes them:

    paired_heads        rows of Q and K that rotate together, j and j + d / 2 of a head, are adjacent
    raised_norms        norms that multiply by 1 + w are stored as 1 + w
    transposed          matrices of GPT-2, which transformers stores as [inputs, outputs]
    transposed_experts  the same for the experts of gpt-oss, where gate and up also alternate

All other tensors are as in the model, and the gate and up of experts are concatenated.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .keys import Layout

Array = np.ndarray[Any, Any]

_EXPERTS = re.compile(r"\.ffn_(gate|up|down)_exps\.(?:weight|bias)$")
_PARTS = ("gate", "up", "down")
_TRANSPOSED = ("attn_qkv.weight", "ffn_down.weight", "ffn_up.weight", "attn_output.weight")


def experts_part(name: str) -> str | None:
    """Returns "gate", "up" or "down" for a tensor of all experts of a layer, None for other tensors."""
    found = _EXPERTS.search(name)
    return found[1] if found else None


def shape_in_file(layout: Layout | None, name: str, shape: Sequence[int]) -> tuple[int, ...]:
    """Returns the shape of the tensor `name` in the file. shape: of its parameter."""
    part = experts_part(name)
    if layout == "transposed" and name.endswith(_TRANSPOSED):
        return tuple(reversed(shape))
    if part is None:  # a tensor has no leading dimension of length 1
        return tuple(shape[1:]) if len(shape) > 1 and shape[0] == 1 else tuple(shape)
    experts, *sizes = shape
    if layout == "transposed_experts":
        sizes.reverse()
    if part != "down":
        sizes[0] //= 2
    return experts, *sizes


def rows_restored(layout: Layout | None, name: str, rows: Array, heads: tuple[int, int]) -> Array:
    """Returns a tensor's rows, numbers or the bytes of quantised blocks, in the model's order.

    heads: number of query heads and of key heads.
    """
    if layout != "paired_heads" or not (".attn_q." in name or ".attn_k." in name):
        return rows
    count = heads[0] if ".attn_q." in name else heads[1]
    pairs: Array = rows.reshape(count, -1, 2, *rows.shape[1:])
    made: Array = pairs.swapaxes(1, 2).reshape(rows.shape)
    return made


def restored(layout: Layout | None, name: str, values: Array, heads: tuple[int, int]) -> Array:
    """Returns a tensor's numbers as the model's parameter has them; for experts, before they are `merged`."""
    if layout == "raised_norms" and name.endswith("norm.weight"):
        lowered: Array = values - 1
        return lowered
    if layout == "transposed" and name.endswith(_TRANSPOSED):
        return np.transpose(values)
    return rows_restored(layout, name, values, heads)


def merged(layout: Layout | None, experts: Mapping[str, Array]) -> Array:
    """Returns all experts' parameter, made of its parts.

    experts: "gate" and "up", or "down" alone: weights [experts, outputs, inputs], biases [experts, outputs].
    """
    values = [experts[part] for part in _PARTS if part in experts]
    if layout != "transposed_experts":
        return np.concatenate(values, axis=1)
    if values[0].ndim == 3:
        values = [one.transpose(0, 2, 1) for one in values]
    return np.stack(values, axis=-1).reshape(*values[0].shape[:-1], -1)
