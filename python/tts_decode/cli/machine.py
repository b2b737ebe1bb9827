"""Describes the device of a run."""

from __future__ import annotations

import os
import platform

import torch


def device_name(device: str) -> str:
    """Returns the processor's name and cores for "cpu", or the GPU's name for "cuda" or "cuda:N"."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_cpu_name()}, {os.cpu_count()} cores"


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
