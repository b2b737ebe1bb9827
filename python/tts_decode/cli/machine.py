"""What a run ran on, in words."""

from __future__ import annotations

import os
import platform

import torch


def device_name(device: str) -> str:
    """Of "cpu", or "cuda" with or without a number: the processor's name and its cores, or the GPU's name."""
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
