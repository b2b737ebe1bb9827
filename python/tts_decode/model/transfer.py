"""Copies from the host to a GPU that are queued, without waiting."""

from __future__ import annotations

import torch
from torch import Tensor


def pinned(tensor: Tensor, device: torch.device) -> Tensor:
    """Returns the tensor in page-locked memory, from which a GPU copies without a wait; itself on a CPU."""
    return tensor.pin_memory() if device.type == "cuda" else tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Queues a copy of a CPU tensor to the device; for the CPU, returns the tensor itself."""
    return pinned(tensor, device).to(device, non_blocking=True)
