"""Loads GGUF files as models: weights stay quantised (`quantised.py`) or are dequantised.

Dequantising takes about 15 s for a model of 135M parameters; reading the converted copy, half a second. The
copy holds float32, as dequantising yields it, and serves every dtype that a model is loaded in.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from ..assembly import assembled, skeleton
from ..checkpoints.floats import load_floats
from ..memory import refuse_beyond_memory
from ..tensor_file import Part
from ..transformers_output import first_line
from .cache import copy_of, discard, is_known, require_unchanged, require_whole, save_into, store
from .header import Header
from .quantised import load_quantised, plan_quantised
from .reading import checked_config, parsing
from .tensors import float_parts
from .tokenizer import read_tokenizer

_FORMAT = 3  # of the converted copies: raise it if the output of `_convert` changes


def load_gguf(
    file: Path, dtype: torch.dtype, report: Callable[[str], None], *, quantised: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Loads the model and tokenizer of a GGUF file from its converted copy, or converts the file now.

    quantised: weights stay quantised if they are and the architecture supports it.
    """
    if not is_known(file):  # the whole file is about to be read: report faults of its header first
        _check(file, quantised=quantised)
    loaded = load_quantised(file, dtype, report, _warn_unkept) if quantised else None
    return _load_dequantised(file, dtype, report) if loaded is None else loaded


def load_gguf_config(file: Path) -> Any:
    """Returns the config from a GGUF file's header. Raises ModelLoadError for faults of the header."""
    with parsing(file):
        return checked_config(Header.read(file))


def _check(file: Path, *, quantised: bool) -> None:
    """Raises ModelLoadError for all faults that can be found without reading weights."""
    if not (quantised and plan_quantised(file)):
        _plan_floats(file)


def _load_dequantised(
    file: Path, dtype: torch.dtype, report: Callable[[str], None]
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    copy = _dequantised_copy(file)
    if copy.is_dir():
        report("loading the weights")
        try:
            return _read(copy, dtype)
        except Exception:  # a damaged copy is no loss: the GGUF is still there
            discard(copy)
    report(f"converting {file.name} (only once; about 20 s for each 100M parameters)")
    model, tokenizer = _convert(file)
    try:
        store(copy, file, lambda folder: _save(folder, model, tokenizer))
    except OSError as cause:
        _warn_unkept(copy, cause)
    else:
        try:
            return _read(copy, dtype)
        except Exception as cause:  # a damaged copy could not be removed
            _warn_unkept(copy, cause)
    require_unchanged(copy, file)
    torch.nn.Module.to(model, dtype=dtype)  # in place
    return model, tokenizer


def _dequantised_copy(file: Path) -> Path:
    return copy_of(file, f"v{_FORMAT}")


def _save(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    save_into(folder, model)
    save_into(folder, tokenizer)


def _warn_unkept(copy: Path, cause: Exception) -> None:
    warnings.warn(
        f"cannot keep a converted copy in {copy} ({first_line(cause)}); the file will be converted again "
        "next time",
        stacklevel=4,
    )


def _read(copy: Path, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    require_whole(copy)
    model = load_floats(copy, AutoConfig.from_pretrained(copy), dtype)
    if model is None:
        model = AutoModelForCausalLM.from_pretrained(copy, dtype=dtype, use_safetensors=True)
    return model, PreTrainedTokenizerFast.from_pretrained(copy)


class _Planned(NamedTuple):
    """How a file is read. model: without memory for its weights, which `parts` hold."""

    model: Any
    tokenizer: PreTrainedTokenizerBase
    parts: list[Part]


def _plan_floats(file: Path) -> _Planned:
    """Plans the loading, before any weight is read.

    Raises:
        ModelLoadError: the header is faulty, or the weights do not fit into memory.
    """
    with parsing(file):
        header = Header.read(file)
        model = skeleton(checked_config(header), torch.float32)
        refuse_beyond_memory(f"{file}, dequantised,", torch.float32.itemsize * model.num_parameters())
        return _Planned(model, read_tokenizer(header), float_parts(header, model))


def _convert(file: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    model, tokenizer, parts = _plan_floats(file)
    with parsing(file):
        made = assembled(model, {}, {part.name: part.make() for part in parts}, torch.float32)
    made.requires_grad_(True)  # as in any model with float weights
    return made, tokenizer
