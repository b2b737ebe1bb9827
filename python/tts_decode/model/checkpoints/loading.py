"""A transformers model from a saved one: weights stay quantised, or are rounded while they are loaded."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from huggingface_hub import snapshot_download
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel

from tts_kernels import QuantisedWeight

from ...errors import ModelLoadError
from ..assembly import Kept, assembled, skeleton
from ..memory import refuse_beyond_memory
from .awq import AWQ
from .compressed import CompressedTensors
from .gptq import GPTQ
from .rounding import Rounded
from .settings import INSTEAD, Settings
from .tensors import FLOATS, SavedTensors

_COMPUTED = re.compile(r"rotary_emb\.inv_freq$")  # what older checkpoints have, and models compute


class Format(Protocol):
    """How weights lie in a checkpoint."""

    def modules(self, tensors: SavedTensors) -> list[str]:
        """Names of the modules that are quantised."""

    def bits_of(self, name: str) -> int:
        """Of each number of one of them."""

    def kind_of(self, name: str) -> str:
        """What people call its weight."""

    def read(
        self, tensors: SavedTensors, name: str, outputs: int, inputs: int, bias: Tensor | None
    ) -> QuantisedWeight:
        """The weight of one of them.

        Raises:
            ModelLoadError, ValueError: a tensor is not there, or not what it has to be.
        """


_FORMATS: dict[str, Callable[[Settings], Format]] = {
    "gptq": GPTQ.of,
    "awq": AWQ.of,
    "compressed-tensors": CompressedTensors.of,
}


def settings_of(config: Any) -> Any:
    """How the weights of a saved model are quantised, or None. transformers dequantises mxfp4 by itself."""
    found = getattr(config, "quantization_config", None) or getattr(config, "compression_config", None)
    return None if isinstance(found, Mapping) and found.get("quant_method") == "mxfp4" else found


def load_checkpoint(
    source: Path | str, config: Any, dtype: torch.dtype, *, quantised: bool
) -> PreTrainedModel:
    """The model of a folder, or of an id on the hub, whose config says how its weights are quantised.

    quantised: weights stay so; else they are dequantised.

    Raises:
        ModelLoadError: a way to quantise that is not served, by its name, before any weight is read; tensors
            that are missing, damaged, or not what the config says.
    """
    settings = Settings(settings_of(config), source)
    known = _FORMATS[settings.one_of("quant_method", *_FORMATS)](settings)
    plain = copy.deepcopy(config)
    for name in ("quantization_config", "compression_config"):
        if hasattr(plain, name):
            delattr(plain, name)
    return _load(_folder(source), skeleton(plain, dtype), known, dtype, quantised=quantised)


def load_rounded(source: Path | str, config: Any, dtype: torch.dtype, bits: int) -> PreTrainedModel:
    """The model of a folder, or of an id on the hub, the weights of its linear layers rounded to 8 or 4 bits.

    Raises:
        ModelLoadError: tensors that are missing, damaged, or cannot be rounded.
    """
    model = skeleton(config, dtype)
    return _load(_folder(source), model, Rounded.of(model, bits), dtype, quantised=True)


def _folder(source: Path | str) -> Path:
    if isinstance(source, Path):
        return source
    return Path(snapshot_download(source, allow_patterns=["*.json", "*.safetensors"]))


def _load(folder: Path, model: Any, known: Format, dtype: torch.dtype, *, quantised: bool) -> PreTrainedModel:
    tensors = SavedTensors(folder)
    layers = {name: _layer(model, name, folder) for name in known.modules(tensors)}
    refuse_beyond_memory(folder, _bytes_of(model, known, layers, quantised=quantised))
    table, head = (_name_of(model, module) for module in (model.get_input_embeddings(), _head(model)))
    if head in layers:  # it is no copy of the table, whatever the config says
        model.config.tie_word_embeddings = False
    weights, floats = dict[str, Kept](), dict[str, Tensor]()
    for name, layer in layers.items():
        weight = _weight(known, tensors, name, layer)
        if quantised:
            weights[name] = Kept(weight, known.kind_of(name))
            continue
        floats[f"{name}.weight"] = weight.dequantised().to(dtype)
        if weight.bias is not None:
            floats[f"{name}.bias"] = weight.bias[: weight.outputs].to(dtype)
    tied = f"{head}.weight" if model.config.tie_word_embeddings else None
    for name, parameter in model.state_dict().items():
        if name != tied and name not in floats and name.rpartition(".")[0] not in weights:
            dtypes = FLOATS if parameter.is_floating_point() else (parameter.dtype,)
            floats[name] = tensors.take(name, tuple(parameter.shape), *dtypes).to(parameter.dtype)
    if tied is not None and tied in tensors:
        _require_copy(tensors, tied, f"{table}.weight")
    _refuse_left(model, tensors)
    made = assembled(model, weights, floats, dtype)
    if (folder / "generation_config.json").is_file():
        made.generation_config = GenerationConfig.from_pretrained(folder)
    return made


def _head(model: Any) -> nn.Module | None:
    found: nn.Module | None = model.get_output_embeddings()
    return found


def _name_of(model: nn.Module, wanted: nn.Module | None) -> str | None:
    return next((name for name, module in model.named_modules() if module is wanted), None)


def _layer(model: nn.Module, name: str, folder: Path) -> Any:
    """What a weight that stays quantised is of: a linear layer, or an embedding table."""
    try:
        module: Any = model.get_submodule(name)
    except AttributeError:
        module = None
    if type(module) is not nn.Linear and not isinstance(module, nn.Embedding):
        found = "none" if module is None else type(module).__name__
        raise ModelLoadError(
            f"model: {folder} has a quantised weight for {name}, expected only such of linear layers; "
            f"{type(model).__name__} of transformers has {found} there (experts lie in one tensor): {INSTEAD}"
        )
    return module


def _bytes_of(model: nn.Module, known: Format, layers: Mapping[str, Any], *, quantised: bool) -> int:
    """About what the weights take: those in groups one bit each for their scales."""
    in_groups = {f"{name}.weight": known.bits_of(name) + 1 for name in layers} if quantised else {}
    bits = 0
    for name, parameter in model.named_parameters():
        bits += parameter.numel() * in_groups.get(name, 8 * parameter.dtype.itemsize)
    return bits // 8


def _weight(known: Format, tensors: SavedTensors, name: str, layer: Any) -> QuantisedWeight:
    outputs, inputs = layer.weight.shape
    bias = None
    has_bias = getattr(layer, "bias", None) is not None
    if has_bias or f"{name}.bias" in tensors:
        bias = tensors.take(f"{name}.bias", (outputs,), *FLOATS)
        if not has_bias:  # AutoGPTQ saves zeros for layers without
            if bias.any():
                raise tensors.damaged(f"{name}.bias: got numbers for a layer without bias, expected zeros")
            bias = None
    try:
        return known.read(tensors, name, outputs, inputs, bias)
    except ValueError as cause:
        raise tensors.damaged(f"{name}: {cause}") from cause


def _require_copy(tensors: SavedTensors, head: str, table: str) -> None:
    shape = tensors.shape(head)
    if not torch.equal(tensors.take(head, shape, *FLOATS), tensors.take(table, shape, *FLOATS)):
        raise tensors.damaged(
            f"{head}: got another weight than {table}, expected the same by its config.json"
        )


def _refuse_left(model: Any, tensors: SavedTensors) -> None:
    left = [name for name in tensors.left if not _COMPUTED.search(name)]
    if left:
        raise tensors.damaged(f"got the tensor {min(left)}, which {type(model).__name__} does not take")
