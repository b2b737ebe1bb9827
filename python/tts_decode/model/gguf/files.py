"""GGUF files as models: weights that stay quantised (`quantised.py`), or dequantised.

Dequantising takes some 15 s for a model of 135M parameters, reading the converted copy half a second. The
copy holds float32, what dequantising yields, and serves every dtype that a model is loaded in.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
from ..transformers_output import first_line
from .cache import copy_of, discard, require_unchanged, require_whole, save_into, store
from .header import Header
from .quantised import load_quantised, quantised_copy
from .reading import checked_config, parsing
from .tensors import float_parts
from .tokenizer import read_tokenizer

_FORMAT = 3  # of the converted copies: raise it when what `_convert` writes changes


def load_gguf(
    file: Path, dtype: torch.dtype, report: Callable[[str], None], *, quantised: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model and tokenizer of a GGUF file: from its converted copy, else converting it now.

    quantised: weights stay as they are, where they are quantised and the architecture is one whose can.
    """
    loaded = load_quantised(file, dtype, report, _warn_unkept) if quantised else None
    return _load_dequantised(file, dtype, report) if loaded is None else loaded


def load_gguf_config(file: Path) -> Any:
    """The config of a GGUF file: from a converted copy, else from its header."""
    for copy in (_dequantised_copy(file), quantised_copy(file)):
        if copy.is_dir():
            with contextlib.suppress(Exception):  # a damaged copy is no loss: the GGUF is still there
                require_whole(copy)
                return AutoConfig.from_pretrained(copy)
    with parsing(file):
        return checked_config(Header.read(file))


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
    report(f"converting {file.name} (only once; some 20 s for each 100M parameters)")
    model, tokenizer = _convert(file)
    try:
        store(copy, file, lambda folder: _save(folder, model, tokenizer))
    except OSError as cause:
        _warn_unkept(copy, cause)
    else:
        try:
            return _read(copy, dtype)
        except Exception as cause:  # of a damaged copy that could not be removed
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


def _convert(file: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    with parsing(file):
        header = Header.read(file)
        config = checked_config(header)
        model = skeleton(config, torch.float32)
        size = torch.float32.itemsize * model.num_parameters()
        refuse_beyond_memory(f"{file}, dequantised,", size)
        tokenizer = read_tokenizer(header)
        floats = {part.name: part.make() for part in float_parts(header, model)}
        made = assembled(model, {}, floats, torch.float32)
    made.requires_grad_(True)  # as of any model whose weights are floats
    return made, tokenizer
