"""`tts-decode info`: shows versions, the machine's features, and whether a model is supported."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.table import Table

from tts_kernels import _core

from ..default_model import DEFAULT_MODEL, default_model_file
from ..errors import ModelLoadError
from ..model.families.conditions import why_general
from ..model.footprint import packed_bytes, weight_bytes
from ..model.gguf.cache import cache_folder
from ..model.loading import resolve_dtype
from .display import Screen, print_json
from .filled import filled
from .machine import device_name
from .model_options import Device, Dtype, Weights
from .options import Json
from .session import open_session

_PACKAGES = ("tts-kernels", "torch", "numpy", "transformers", "gguf", "scipy", "reasoning-gym")


_KV_MIB = 64  # for a decoder that computes nothing


@filled
def info(
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            help="Also load a model and compare the decoder with the model's own forward.",
            show_default=False,
        ),
    ] = None,
    dtype: Dtype = "auto",
    weights: Weights = "auto",
    device: Device = "cpu",
    json_output: Json = False,
) -> None:
    """Show versions, instruction sets, threads and devices, and whether a model is supported.

    Examples:

      tts-decode info

      tts-decode info --model SmolLM2-135M-Instruct

      tts-decode info --json

    tts-decode doctor says what is missing, and the command for it.
    """
    facts = collect()
    if model is not None:
        facts |= describe_model(model, dtype, weights, device)
    if json_output:
        print_json(facts)
        return
    table = Table.grid(padding=(0, 2))
    for name, value in facts.items():
        if isinstance(value, dict):
            value = "\n".join(f"{key} {shown}" for key, shown in value.items())
        elif isinstance(value, list):
            value = ", ".join(value)
        table.add_row(name.replace("_", " "), str(value))
    Screen().print(table)


def collect() -> dict[str, Any]:
    """Returns the facts, JSON-ready."""
    devices = [f"cpu ({device_name('cpu')})"]
    devices += [f"cuda:{i} ({device_name(f'cuda:{i}')})" for i in range(torch.cuda.device_count())]
    return {
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in _PACKAGES},
        "devices": devices,
        "threads": torch.get_num_threads(),
        "kernel_isa": _core.cpu_isa(),
        "isa_levels": {name: "yes" if supported else "no" for name, supported in _core.cpu_isa_levels()},
        "auto_dtype": str(resolve_dtype("auto")).removeprefix("torch."),
        "default_model": _default_model(),
        "model_cache": _model_cache(),
    }


def describe_model(name: str, dtype: str, weights: str, device: str) -> dict[str, Any]:
    """Returns a model's weights, its path and the result of its self-check, JSON-ready."""
    with open_session(name, dtype, device, _KV_MIB, "auto", weights=weights) as session:
        decoder = session.decoder()
    check, packed = decoder.self_check, decoder.runtime.engine.packed
    assert check is not None
    kinds, copies = weight_bytes(session.model), packed_bytes(session.model, packed)
    sizes = {kind: _megabytes(size) for kind, size in sorted(kinds.items())}
    if copies:
        sizes["packed copies"] = _megabytes(copies)
    return {
        "model": {
            "name": name,
            "class": type(session.model).__name__,
            "dtype": str(session.model.dtype).removeprefix("torch."),
            "path": "general" if packed is None else "packed",
            **({} if packed is not None else {"why_general": _why_general(session.model)}),
        },
        "weights": sizes | {"in memory": _megabytes(sum(kinds.values()) + copies), **_file_size(name)},
        "self_check": {
            "result": "agrees with the model's own forward",
            "paths": ", ".join(check.paths),
            "seconds": round(check.seconds, 3),
            "largest_difference": float(f"{check.difference:.2g}"),
            "allowed": check.tolerance,
            "where": check.place,
        },
    }


def _why_general(model: Any) -> str:
    if model.device.type != "cpu":
        return "packed weights are for the CPU"
    return why_general(model) or "its declaration says that it can run packed"


def _file_size(name: str) -> dict[str, str]:
    file = default_model_file() if name == DEFAULT_MODEL else Path(name)
    return {"in the file": _megabytes(file.stat().st_size)} if file.is_file() else {}


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _model_cache() -> str:
    try:
        return str(cache_folder())
    except ModelLoadError:
        return "none: set XDG_CACHE_HOME, or HOME"


def _default_model() -> str:
    try:
        return str(default_model_file())
    except ModelLoadError:
        return "not installed"
