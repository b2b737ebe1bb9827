"""Reads float checkpoints of models that run packed, tensor by tensor.

transformers maps the files instead, and a mapped file takes memory besides the weights made from it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from ...errors import ModelLoadError
from ..assembly import assembled, skeleton
from ..families.conditions import why_general
from .parameters import take_parameter, tensors_of
from .tensors import FLOATS, SavedTensors


def load_floats(folder: Path, config: Any, dtype: torch.dtype) -> PreTrainedModel | None:
    """Returns the model of a folder, or None to leave it to transformers.

    That is so if it runs over the general path, or its files lack the names and shapes of the model's own
    tensors.
    """
    model = skeleton(config, dtype)
    if why_general(model) is not None:
        return None
    try:
        tensors = SavedTensors(folder)
    except ModelLoadError:
        return None
    parameters: dict[str, Tensor] = model.state_dict()
    if model.config.tie_word_embeddings:
        head = model.get_output_embeddings()
        tied = {f"{name}.weight" for name, module in model.named_modules() if module is head}
        parameters = {name: tensor for name, tensor in parameters.items() if name not in tied}
    shapes = dict[str, list[int]]()
    for name, tensor in parameters.items():
        shapes |= tensors_of(tensors, name, tensor)
    fits = tensors.left == set(shapes) and all(
        tensors.shape(name) == shape and tensors.dtype(name) in FLOATS for name, shape in shapes.items()
    )
    if not fits or any(tensor.dtype != dtype for tensor in parameters.values()):
        return None
    floats = {name: take_parameter(tensors, name, tensor) for name, tensor in parameters.items()}
    made = assembled(model, {}, floats, dtype)
    made.requires_grad_(True)
    if (folder / "generation_config.json").is_file():
        made.generation_config = GenerationConfig.from_pretrained(folder)
    return made
