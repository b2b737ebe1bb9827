"""GGUF files through transformers, with a converted copy in the user's cache folder.

Dequantising takes some 15 s for a model of 135M parameters, reading the converted copy half a second. A copy
is keyed by the digest of the GGUF's bytes, so an updated file is converted again; it holds float32, what
dequantising yields, and serves every dtype that a model is loaded in.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    GgufConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from ...errors import ModelLoadError
from ..transformers_output import first_line
from .config import config_of
from .header import Header
from .tokenizer import read_tokenizer, refuse_tokenizer

_FORMAT = 3  # of the converted copies: raise it when what `_convert` writes changes
_LONGEST_STEM = 100  # of the file's name in that of its copy: file systems take 255 bytes
_PARTIAL = ".partial-"
_STALE_SECONDS = 24 * 3600.0


def load_gguf(
    file: Path, dtype: torch.dtype, report: Callable[[str], None]
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model and tokenizer of a GGUF file: from its converted copy, else converting it now."""
    copy = _copy_of(file)
    if copy.is_dir():
        report("loading the weights")
        try:
            return _read(copy, dtype)
        except Exception:  # a damaged copy is no loss: the GGUF is still there
            shutil.rmtree(copy, ignore_errors=True)
    report(f"converting {file.name} (only once; some 20 s for each 100M parameters)")
    model, tokenizer = _convert(file)
    try:
        store(copy, model, tokenizer)
        return _read(copy, dtype)
    except OSError as cause:
        warnings.warn(
            f"cannot keep a converted copy of {file.name} in {copy.parent} ({first_line(cause)}); "
            "it will be converted again next time",
            stacklevel=2,
        )
        torch.nn.Module.to(model, dtype=dtype)  # in place
        return model, tokenizer


def load_gguf_config(file: Path) -> Any:
    """The config of a GGUF file: from its converted copy, else from its header."""
    copy = _copy_of(file)
    if copy.is_dir():
        with contextlib.suppress(Exception):  # a damaged copy is no loss: the GGUF is still there
            return AutoConfig.from_pretrained(copy)
    with _parsing(file):
        return _checked(Header.read(file))


def cache_folder() -> Path:
    """``$XDG_CACHE_HOME/tts-kernels/models``, with ``~/.cache`` where the variable is not set."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tts-kernels" / "models"


def _copy_of(file: Path) -> Path:
    stem = re.sub(r"[^\w.-]", "_", file.stem, flags=re.ASCII)[:_LONGEST_STEM]
    return cache_folder() / f"{stem}-{_digest(file)}-v{_FORMAT}"


def store(copy: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Writes the folder ``copy`` whole or not at all: a neighbour is filled, then renamed."""
    copy.parent.mkdir(parents=True, exist_ok=True)
    _sweep(copy.parent)
    with tempfile.TemporaryDirectory(prefix=_PARTIAL, dir=copy.parent, ignore_cleanup_errors=True) as partial:
        whole = Path(partial) / copy.name
        model.save_pretrained(whole)
        tokenizer.save_pretrained(whole)
        # Another process may have finished first: its copy is as good as ours.
        with contextlib.suppress(FileExistsError):
            _rename(whole, copy)


def _rename(source: Path, target: Path) -> None:
    try:
        source.rename(target)
    except OSError:
        if target.is_dir():
            raise FileExistsError(target) from None
        raise


def _sweep(folder: Path) -> None:
    """Removes what a killed conversion left behind; a day is longer than any conversion that still runs."""
    for partial in folder.glob(f"{_PARTIAL}*"):
        with contextlib.suppress(OSError):
            if time.time() - partial.stat().st_mtime > _STALE_SECONDS:
                shutil.rmtree(partial)


def _digest(file: Path) -> str:
    digest = hashlib.blake2b(digest_size=8)
    try:
        with file.open("rb") as stream:
            if stream.read(4) != b"GGUF":
                raise ModelLoadError(
                    f"model: {file} does not begin with the bytes 'GGUF', so it is no GGUF file"
                )
            while block := stream.read(1 << 20):
                digest.update(block)
    except OSError as cause:
        raise ModelLoadError(f"model: cannot read {file}: {cause.strerror}") from cause
    return digest.hexdigest()


def _read(copy: Path, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    model = AutoModelForCausalLM.from_pretrained(copy, dtype=dtype, use_safetensors=True)
    return model, PreTrainedTokenizerFast.from_pretrained(copy)


def _checked(header: Header) -> Any:
    """The config. Raises ModelLoadError for anything in the header that would be lost."""
    refuse_tokenizer(header)
    return config_of(header)


def _convert(file: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    # The converter draws a bar of its own on stderr, whatever the settings of transformers say.
    with _parsing(file), contextlib.redirect_stderr(io.StringIO()):
        header = Header.read(file)
        config = _checked(header)
        tokenizer = read_tokenizer(header)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            file.parent,
            gguf_file=file.name,
            config=config,
            dtype=torch.float32,
            quantization_config=GgufConfig(dequantize=True),
            ignore_mismatched_sizes=True,  # they are refused below, by name
            output_loading_info=True,
        )
    model, info = loaded
    for name, got, expected in sorted(info["mismatched_keys"]):
        raise ModelLoadError(
            f"model: {file} is damaged: {name} got the shape {tuple(got)}, expected {tuple(expected)} by the "
            "file's keys; fetch it again"
        )
    if info["missing_keys"]:  # which would have random values
        raise ModelLoadError(
            f"model: {file} does not fill {min(info['missing_keys'])} of {type(model).__name__}; "
            "use safetensors weights of the model"
        )
    broken = [name for name, weight in model.named_parameters() if not torch.isfinite(weight).all()]
    if broken:
        raise ModelLoadError(
            f"model: {file} is damaged: {broken[0]} holds values that are not finite; fetch it again"
        )
    model.generation_config = GenerationConfig.from_model_config(model.config)
    return model, tokenizer


@contextlib.contextmanager
def _parsing(file: Path) -> Iterator[None]:
    """Turns what parsers raise into ModelLoadError."""
    try:
        yield
    except ModelLoadError:
        raise
    except ImportError as cause:
        raise _lacks_gguf(file) from cause
    except Exception as cause:  # the parsers raise whatever the damaged bytes lead to
        raise _unreadable(file, cause) from cause


def _lacks_gguf(file: Path) -> ModelLoadError:
    return ModelLoadError(f"model: reading {file} needs the package gguf; run: pip install 'tts-kernels[hf]'")


def _unreadable(file: Path, cause: Exception) -> ModelLoadError:
    return ModelLoadError(
        f"model: cannot read {file} as GGUF; it may be damaged or cut short (fetch it again), or of an "
        f"architecture that transformers does not convert. Cause: {first_line(cause)}"
    )
