"""The devices that have kernels."""

from __future__ import annotations

import torch


def checked_device(device: str | torch.device) -> torch.device:
    """Returns the device, with its index if it is a GPU. Raises ValueError if it is unsupported or absent."""
    try:
        known = torch.device(device)
    except (RuntimeError, TypeError) as cause:
        raise ValueError(
            f"device: got {device!r}, expected 'cpu', 'cuda', 'cuda:N' or a torch.device"
        ) from cause
    if known.type == "cpu":
        return torch.device("cpu")
    if known.type != "cuda":
        raise ValueError(f"device: got {str(device)!r}, expected cpu or cuda (no kernel for that device)")
    found = torch.cuda.device_count()
    if (known.index or 0) >= found:
        raise ValueError(f"device: got {str(device)!r}, but torch finds {found} CUDA devices")
    return torch.device("cuda", torch.cuda.current_device() if known.index is None else known.index)
