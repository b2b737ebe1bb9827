"""Loads GGUF files as models whose weights stay quantised, from file to kernel.

A converted copy holds the weights as the kernels read them, in panels. It is mapped, not read: loading takes
only as long as building the modules, and processes that load the same file share its memory.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from tts_kernels import QuantForm, QuantisedWeight

from ..assembly import Kept, assembled, skeleton
from ..memory import refuse_beyond_memory
from ..tensor_file import map_tensors, write_tensors
from .cache import copy_of, discard, require_unchanged, require_whole, save_into, store
from .header import Header
from .reading import checked_config, parsing
from .tensors import Plan, QuantisedPart, plan_of
from .tokenizer import read_tokenizer

_VERSION = "q2"  # of the copies: raise it if their content changes
_TENSORS, _MODULES = "weights.safetensors", "modules.json"


class Planned(NamedTuple):
    """How a file is read."""

    config: Any
    plan: Plan
    tokenizer: PreTrainedTokenizerBase


class _Source(NamedTuple):
    """The source of a model: its config, the quantised weights by module, and all tensors by name."""

    config: Any
    modules: Mapping[str, QuantisedPart]
    tensors: Mapping[str, Tensor]


def quantised_copy(file: Path) -> Path:
    """Returns the folder of the file's copy, which may not exist."""
    return copy_of(file, _VERSION)


def load_quantised(
    file: Path, dtype: torch.dtype, report: Callable[[str], None], unkept: Callable[[Path, Exception], None]
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase] | None:
    """Loads the model and tokenizer of a GGUF file; None if its weights are not, or cannot stay, quantised.

    dtype: of activations and unquantised weights. unkept: called if the copy could not be kept.
    """
    copy = quantised_copy(file)
    if copy.is_dir():
        report("mapping the weights")
        try:
            return _read(copy, dtype)
        except Exception:  # a damaged copy is no loss: the GGUF is still there
            discard(copy)
    planned = plan_quantised(file)
    if planned is None:
        return None
    config, plan, tokenizer = planned
    report(f"packing {file.name} (only once)")
    try:
        _store(copy, file, config, tokenizer, plan)
    except OSError as cause:
        unkept(copy, cause)
    else:
        try:
            return _read(copy, dtype)
        except Exception as cause:  # a damaged copy could not be removed
            unkept(copy, cause)
    with parsing(file):
        tensors = {part.name: part.make() for part in plan.parts}
        require_unchanged(copy, file)
    return _model_of(_Source(config, plan.modules, tensors), dtype), tokenizer


def plan_quantised(file: Path) -> Planned | None:
    """Plans the loading, before any weight is read; None as in `load_quantised`.

    Raises:
        ModelLoadError: the header is faulty, or the weights do not fit into memory.
    """
    with parsing(file):
        header = Header.read(file)
        config = checked_config(header)
        plan = plan_of(header, skeleton(config, torch.float32))
        if plan is None:
            return None
        refuse_beyond_memory(file, sum(part.size for part in plan.parts))
        return Planned(config, plan, read_tokenizer(header))


def _store(copy: Path, file: Path, config: Any, tokenizer: PreTrainedTokenizerBase, plan: Plan) -> None:
    """Writes the copy. Raises OSError if it cannot be written, and ModelLoadError for a faulty file."""
    failed: OSError | None = None
    with parsing(file):
        try:
            store(copy, file, lambda folder: _write(folder, config, tokenizer, plan))
        except OSError as cause:
            failed = cause
    if failed is not None:
        raise failed


def _write(folder: Path, config: Any, tokenizer: PreTrainedTokenizerBase, plan: Plan) -> None:
    save_into(folder, config)
    save_into(folder, tokenizer)
    write_tensors(folder / _TENSORS, plan.parts)
    modules = {name: part._asdict() for name, part in plan.modules.items()}
    (folder / _MODULES).write_text(json.dumps(modules), encoding="utf-8")


def _read(copy: Path, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    require_whole(copy)
    kept = json.loads((copy / _MODULES).read_text(encoding="utf-8"))
    modules = {name: QuantisedPart(**part) for name, part in kept.items()}
    source = _Source(AutoConfig.from_pretrained(copy), modules, map_tensors(copy / _TENSORS))
    return _model_of(source, dtype), PreTrainedTokenizerFast.from_pretrained(copy)


def _model_of(source: _Source, dtype: torch.dtype) -> PreTrainedModel:
    weights, floats = dict[str, Kept](), dict[str, Tensor]()
    for name, part in source.modules.items():
        panels, bias = source.tensors[f"{name}.panels"], source.tensors.get(f"{name}.bias")
        weight = QuantisedWeight(panels, bias, QuantForm.of(part.form), part.outputs, part.inputs)
        weights[name] = Kept(weight, part.kind)
    for name, tensor in source.tensors.items():
        if name.rpartition(".")[0] not in weights:
            floats[name] = tensor.to(dtype)
    return assembled(skeleton(source.config, dtype), weights, floats, dtype)
