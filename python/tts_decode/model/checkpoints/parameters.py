"""Reads float parameters of a model from its files, which may have one tensor per expert."""

from __future__ import annotations

import torch
from torch import Tensor

from .experts import pieces_of
from .tensors import FLOATS, SavedTensors


def tensors_of(tensors: SavedTensors, name: str, parameter: Tensor) -> dict[str, list[int]]:
    """Returns the tensors that fill a parameter, in order, and the shapes that they must have."""
    pieces = {} if name in tensors else pieces_of(name, parameter.shape)
    if not pieces:
        return {name: list(parameter.shape)}
    return {piece: [rows, parameter.shape[-1]] for piece, rows in pieces.items()}


def take_parameter(tensors: SavedTensors, name: str, parameter: Tensor) -> Tensor:
    """Returns the parameter's values in its shape and dtype; the parameter itself is on the meta device.

    Raises:
        ModelLoadError: a tensor is missing, or wrong.
    """
    dtypes = FLOATS if parameter.is_floating_point() else (parameter.dtype,)
    shapes = tensors_of(tensors, name, parameter)
    if name in shapes:
        return tensors.take(name, parameter.shape, *dtypes, to=parameter.dtype)
    made = torch.empty(parameter.shape, dtype=parameter.dtype)
    rows = torch.split(made.flatten(0, 1), [shape[0] for shape in shapes.values()])
    for piece, part in zip(shapes, rows, strict=True):
        tensors.take_into(part, piece, *dtypes)
    return made
