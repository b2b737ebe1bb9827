"""Copies from the host to a GPU that are queued, not waited for."""

from __future__ import annotations

import torch
from torch import Tensor


def pinned(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor in page-locked memory, from where a GPU copies without a wait; itself for the CPU."""
    return tensor.pin_memory() if device.type == "cuda" else tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Queues a copy of a CPU tensor to the device; the tensor itself for the CPU."""
    return pinned(tensor, device).to(device, non_blocking=True)
