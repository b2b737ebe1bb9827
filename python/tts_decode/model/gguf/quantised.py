"""Models from GGUF files whose weights stay quantised, from file to kernel.

A converted copy holds the weights as the kernels read them, in panels. It is mapped, not read: loading takes
the time of making the modules, and processes that load the same file share its memory.
"""

from __future__ import annotations

import json
import shutil
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

from ...errors import ModelLoadError
from ..assembly import Kept, assembled, skeleton
from ..memory import refuse_beyond_memory
from ..tensor_file import map_tensors, write_tensors
from .cache import copy_of, store
from .header import Header
from .reading import checked_config, parsing
from .tensors import Plan, QuantisedPart, plan_of
from .tokenizer import read_tokenizer

_VERSION = "q2"  # of the copies: raise it when what is written changes
_TENSORS, _MODULES = "weights.safetensors", "modules.json"


class _Source(NamedTuple):
    """What a model is made of: its config, what stays quantised by module, and all tensors by their names."""

    config: Any
    modules: Mapping[str, QuantisedPart]
    tensors: Mapping[str, Tensor]


def quantised_copy(file: Path) -> Path:
    """The folder of the file's copy, which may not be there."""
    return copy_of(file, _VERSION)


def load_quantised(
    file: Path, dtype: torch.dtype, report: Callable[[str], None], unkept: Callable[[Path, OSError], None]
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase] | None:
    """The model and tokenizer of a GGUF file. None where its weights cannot stay quantised, or are not.

    dtype: of activations, and of what is not quantised. unkept: told where the copy could not be kept.
    """
    copy = quantised_copy(file)
    if copy.is_dir():
        report("mapping the weights")
        try:
            return _read(copy, dtype)
        except Exception:  # a damaged copy is no loss: the GGUF is still there
            shutil.rmtree(copy, ignore_errors=True)
    with parsing(file):
        header = Header.read(file)
        config = checked_config(header)
        plan = plan_of(header, skeleton(config, torch.float32))
        if plan is None:
            return None
        refuse_beyond_memory(file, sum(part.size for part in plan.parts))
        tokenizer = read_tokenizer(header)
    report(f"packing {file.name} (only once)")
    try:
        _store(copy, file, config, tokenizer, plan)
        return _read(copy, dtype)
    except OSError as cause:
        unkept(copy, cause)
    with parsing(file):
        tensors = {part.name: part.make() for part in plan.parts}
    return _model_of(_Source(config, plan.modules, tensors), dtype), tokenizer


def _store(copy: Path, file: Path, config: Any, tokenizer: PreTrainedTokenizerBase, plan: Plan) -> None:
    """Raises OSError where it cannot be written, and ModelLoadError for what is wrong with the file."""
    failed: OSError | None = None
    with parsing(file):
        try:
            store(copy, lambda folder: _write(folder, config, tokenizer, plan))
        except OSError as cause:
            failed = cause
    if failed is not None:
        raise failed


def _write(folder: Path, config: Any, tokenizer: PreTrainedTokenizerBase, plan: Plan) -> None:
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_tensors(folder / _TENSORS, plan.parts)
    modules = {name: part._asdict() for name, part in plan.modules.items()}
    text = json.dumps({"file": _facts(folder / _TENSORS), "modules": modules})
    (folder / _MODULES).write_text(text, encoding="utf-8")


def _facts(file: Path) -> list[int]:
    """By which a file of tensors is known to be as it was written: reading all of it would take its time."""
    found = file.stat()
    return [found.st_size, found.st_mtime_ns]


def _read(copy: Path, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    kept = json.loads((copy / _MODULES).read_text(encoding="utf-8"))
    if kept["file"] != _facts(copy / _TENSORS):
        raise ModelLoadError(f"model: {copy / _TENSORS} was changed or is damaged")
    modules = {name: QuantisedPart(**part) for name, part in kept["modules"].items()}
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
