"""Refuses configs whose sizes differ from their files, before anything of these sizes is made.

The modules of ten million layers exhaust time and memory even without weights; and transformers fills a
tensor whose size differs from its file's with random numbers before it refuses it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tts_kernels.checks import is_integer

from ...errors import ModelLoadError
from .experts import pieces_of
from .tensors import FLOATS, SavedTensors, has_weights

_MOST = 10_000  # layers, or experts, of any model
_LAYERS = "num_hidden_layers"
_SIZES = ("hidden_size", "vocab_size", "num_attention_heads", "num_key_value_heads", "head_dim", _LAYERS)
_EPSILONS = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_eps")
_MODULES = frozenset(
    {_LAYERS, "num_layers", "n_layers", "n_layer", "encoder_layers", "decoder_layers"}
    | {"num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"}
)


def refuse_counts(source: Path | str, config: Any) -> None:
    """Raises ModelLoadError for sizes, numbers of layers and experts, and epsilons that no model has.

    source: a folder, or an id on the hub, whose files are not fetched yet.
    """
    text = config.get_text_config()
    for name in _SIZES:
        value = getattr(text, name, None)
        if is_integer(value) and value < 1:
            raise _refused(source, name, value, "at least 1")
    for name in _EPSILONS:
        value = getattr(text, name, None)
        if isinstance(value, float) and not 0 <= value < 1:
            raise _refused(source, name, value, "0 to 1")
    for name, value in _counts(config.to_dict(), ""):
        if value > _MOST:
            raise _refused(source, name, value, f"at most {_MOST}")
    layers, tensors = getattr(text, _LAYERS, None), None
    with contextlib.suppress(ModelLoadError):  # damaged files are reported when they are read
        tensors = _tensors_of(source)
    if tensors is not None and is_integer(layers) and layers > len(tensors.left):  # each has at least one
        raise _refused(source, _LAYERS, layers, f"no more than the {len(tensors.left)} tensors of its files")


def refuse_sizes(source: Path | str, model: nn.Module) -> None:
    """Raises ModelLoadError if a folder's tensor and the parameter of its name differ in size.

    A parameter of all experts may have a tensor for each; none may be missing. It also refuses numbers other
    than floats, which belong to quantised weights and which transformers would cast.

    model: of the folder's config, on the meta device.
    """
    if (tensors := _tensors_of(source)) is None:
        return
    for name, parameter in model.state_dict().items():
        if name not in tensors:
            _refuse_experts(source, name, parameter.shape, tensors)
            continue
        if tensors.count(name) != parameter.numel():
            raise other_shape(source, name, tensors.shape(name), parameter.shape)
        if parameter.is_floating_point() and tensors.dtype(name) not in (*FLOATS, torch.float64):
            raise ModelLoadError(
                f"model: {source}: {name}: got {tensors.dtype_name(name)}, expected floats, as its "
                "config.json has no quantization_config; take the model's float checkpoint"
            )


def _refuse_experts(source: Path | str, name: str, shape: torch.Size, tensors: SavedTensors) -> None:
    """Refuses files with tensors for each expert if one is missing, has another shape or is too many."""
    pieces = pieces_of(name, shape)
    if not any(piece in tensors for piece in pieces):
        return
    for piece, rows in pieces.items():
        expected = [rows, shape[-1]]
        if piece not in tensors:
            raise tensors.damaged(f"got no tensor {piece}, expected one of shape {expected}")
        if tensors.shape(piece) != expected:
            raise other_shape(source, piece, tensors.shape(piece), expected)
    for piece in pieces_of(name, torch.Size((shape[0] + 1, *shape[1:]))):
        if piece in tensors and piece not in pieces:
            raise tensors.damaged(f"got the tensor {piece}, expected {shape[0]} experts")


def other_shape(source: Path | str, name: str, got: Any, expected: Any) -> ModelLoadError:
    """The error for a tensor whose shape is not what the config says."""
    return ModelLoadError(
        f"model: {source}: {name}: got shape {list(got)}, expected {list(expected)} by its config.json; it "
        "may be damaged (fetch it again), or of another model"
    )


def _tensors_of(source: Path | str) -> SavedTensors | None:
    """Returns the tensors; None without a folder or known files: transformers reports what is missing.

    Raises ModelLoadError if a file, or the index of several, is damaged or missing.
    """
    if not isinstance(source, Path) or not has_weights(source):
        return None
    return SavedTensors(source)


def _counts(fields: Mapping[str, Any], path: str) -> Iterator[tuple[str, int]]:
    """Yields numbers of layers and experts, by their path in config.json."""
    for name, value in fields.items():
        if isinstance(value, Mapping):
            yield from _counts(value, f"{path}{name}.")
        elif name in _MODULES and is_integer(value):
            yield f"{path}{name}", value


def _refused(source: Path | str, name: str, value: float, expected: str) -> ModelLoadError:
    return ModelLoadError(
        f"model: {source}: config.json: {name}: got {value}, expected {expected}; it may be damaged: fetch "
        "it again"
    )
