"""Makes a transformers model from a saved one: weights stay quantised, or are rounded during loading."""

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
from ..assembly import Kept, assembled
from ..memory import refuse_beyond_memory
from .awq import AWQ
from .compressed import CompressedTensors
from .experts import PANEL, ExpertLayer, Stack, incomplete
from .gptq import GPTQ
from .mxfp4 import MXFP4
from .parameters import take_parameter
from .rounding import Rounded
from .settings import INSTEAD, Settings
from .tensors import FLOATS, SavedTensors

_SETTINGS = ("quantization_config", "compression_config")  # in config.json
_COMPUTED = re.compile(r"rotary_emb\.inv_freq$")  # in older checkpoints; models compute it


class Format(Protocol):
    """The format of the weights in a checkpoint."""

    def modules(self, tensors: SavedTensors) -> list[str]:
        """Returns the names of the quantised modules."""

    def bits_of(self, name: str) -> int:
        """Returns the bits per number of a quantised module."""

    def kind_of(self, name: str) -> str:
        """Returns the usual name of its weight's format."""

    def read(
        self, tensors: SavedTensors, name: str, outputs: int, inputs: int, bias: Tensor | None
    ) -> QuantisedWeight:
        """Reads the weight of a quantised module.

        Raises:
            ModelLoadError, ValueError: a tensor is missing, or wrong.
        """


_FORMATS: dict[str, Callable[[Settings], Format]] = {
    "gptq": GPTQ.of,
    "awq": AWQ.of,
    "compressed-tensors": CompressedTensors.of,
    "mxfp4": MXFP4.of,
}


def settings_of(source: Path | str, config: Any) -> Settings | None:
    """Returns how the weights of a saved model are quantised, or None.

    Raises ModelLoadError if the field of config.json is no object.
    """
    for name in _SETTINGS:
        if (fields := getattr(config, name, None)) is not None:
            return Settings(fields, source, name)
    return None


def without_settings(config: Any) -> Any:
    """Returns the config as of a model with float weights."""
    plain = copy.deepcopy(config)
    for name in _SETTINGS:
        if hasattr(plain, name):
            delattr(plain, name)
    return plain


def load_checkpoint(
    source: Path | str, model: Any, settings: Settings, dtype: torch.dtype, *, quantised: bool
) -> PreTrainedModel:
    """Loads the model of a folder, or of an id on the hub, whose config says how its weights are quantised.

    model: the skeleton of its config `without_settings`. settings: of `settings_of`.
    quantised: weights stay so; otherwise they are dequantised.

    Raises:
        ModelLoadError: an unsupported quantisation, by name, before any weight is read; tensors that are
            missing, damaged, or not what the config says.
    """
    known = _FORMATS[settings.one_of("quant_method", *_FORMATS)](settings)
    return _load(_folder(source), model, known, dtype, quantised=quantised)


def load_rounded(source: Path | str, model: Any, dtype: torch.dtype, bits: int) -> PreTrainedModel:
    """Loads the model of a folder, or of an id on the hub, with linear layers rounded to 8 or 4 bits.

    model: the skeleton of its config.

    Raises:
        ModelLoadError: tensors that are missing, damaged, or cannot be rounded.
    """
    return _load(_folder(source), model, Rounded.of(model, bits), dtype, quantised=True)


def _folder(source: Path | str) -> Path:
    if isinstance(source, Path):
        return source
    return Path(snapshot_download(source, allow_patterns=["*.json", "*.safetensors"]))


def _load(folder: Path, model: Any, known: Format, dtype: torch.dtype, *, quantised: bool) -> PreTrainedModel:
    tensors = SavedTensors(folder)
    names = known.modules(tensors)
    experts = {name: layer for name in names if (layer := ExpertLayer.of(model, name)) is not None}
    layers = {name: _layer(model, name, folder) for name in names if name not in experts}
    if (lacking := incomplete(model, experts)) is not None:
        raise tensors.damaged(f"got no quantised weight {lacking}, expected one as of the other experts")
    in_groups = {f"{name}.weight": known.bits_of(name) for name in layers}
    in_groups |= {layer.parameter: known.bits_of(name) for name, layer in experts.items()}
    refuse_beyond_memory(folder, _bytes_of(model, in_groups if quantised else {}))
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
    filled = set(weights)
    if quantised:
        weights |= _stacked(known, tensors, model, experts)
        filled |= {layer.experts for layer in experts.values()}
    else:
        floats |= _dequantised(known, tensors, model, experts, dtype)
    tied = f"{head}.weight" if model.config.tie_word_embeddings else None
    for name, parameter in model.state_dict().items():
        if name != tied and name not in floats and name.rpartition(".")[0] not in filled:
            floats[name] = take_parameter(tensors, name, parameter)
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
    """Returns the layer of a weight that stays quantised: a linear layer, or an embedding table."""
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


def _bytes_of(model: nn.Module, in_groups: Mapping[str, int]) -> int:
    """Estimates the bytes of the weights. in_groups: bits of parameters that need some more for scales."""
    bits = 0
    for name, parameter in model.named_parameters():
        each = in_groups[name] + 1 if name in in_groups else 8 * parameter.dtype.itemsize
        bits += parameter.numel() * each
    return bits // 8


def _stacked(
    known: Format, tensors: SavedTensors, model: nn.Module, layers: Mapping[str, ExpertLayer]
) -> dict[str, Kept]:
    """Returns the weights of all experts, under the names that `assembled` expects."""
    stacks, kinds = dict[str, Stack](), dict[str, str]()
    for name, layer in layers.items():
        if layer.outputs % PANEL:
            raise ModelLoadError(
                f"model: {tensors.folder}: {name} has {layer.outputs} outputs, expected a multiple of "
                f"{PANEL}; pass weights='float32' to dequantise it"
            )
        weight, part = _of_expert(known, tensors, name, layer), f"{layer.experts}.{layer.part}"
        if weight.order is not None:
            raise ModelLoadError(
                f"model: {tensors.folder}: {name} groups inputs in the order of their activations (act-order,"
                f" desc_act), which is served for linear layers, not for experts; pass weights='float32' to "
                f"dequantise it, or {INSTEAD}"
            )
        stack = stacks.setdefault(part, Stack(_count(model, layer)))
        try:
            stack.put(layer.number, weight)
        except ValueError as cause:
            raise tensors.damaged(f"{name}: {cause}") from cause
        kinds[part] = known.kind_of(name)
    return {part: Kept(stack.weight, kinds[part]) for part, stack in stacks.items()}


def _dequantised(
    known: Format,
    tensors: SavedTensors,
    model: nn.Module,
    layers: Mapping[str, ExpertLayer],
    dtype: torch.dtype,
) -> dict[str, Tensor]:
    """Returns the parameters of all experts; biases are separate parameters."""
    made = dict[str, Tensor]()
    for name, layer in layers.items():
        if layer.parameter not in made:
            made[layer.parameter] = torch.empty(model.get_parameter(layer.parameter).shape, dtype=dtype)
        layer.rows_in(made[layer.parameter]).copy_(_of_expert(known, tensors, name, layer).dequantised())
    return made


def _count(model: nn.Module, layer: ExpertLayer) -> int:
    return len(model.get_parameter(layer.parameter))


def _of_expert(known: Format, tensors: SavedTensors, name: str, layer: ExpertLayer) -> QuantisedWeight:
    try:
        return known.read(tensors, name, layer.outputs, layer.inputs, None)
    except ValueError as cause:
        raise tensors.damaged(f"{name}: {cause}") from cause


def _weight(known: Format, tensors: SavedTensors, name: str, layer: Any) -> QuantisedWeight:
    outputs, inputs = layer.weight.shape
    bias = None
    has_bias = getattr(layer, "bias", None) is not None
    if has_bias or f"{name}.bias" in tensors:
        bias = tensors.take(f"{name}.bias", (outputs,), *FLOATS)
        if not has_bias:  # AutoGPTQ saves zeros for layers without bias
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
