"""The ranks that hold one model together under torchrun."""

from __future__ import annotations

import os

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from .errors import UsageError


def mesh_of_torchrun(device: str) -> DeviceMesh | None:
    """Returns the mesh of all processes that torchrun started, by its environment; None without torchrun."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1 or not dist.is_torchelastic_launched():
        return None
    kind = torch.device(device).type
    if kind == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    return init_device_mesh(kind, (size,))


def refuse_torchrun() -> None:
    """Raises UsageError if torchrun started several processes of a command that does not support ranks."""
    if dist.is_torchelastic_launched() and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError(
            f"got {os.environ['WORLD_SIZE']} ranks of torchrun, expected one process: `search` alone splits "
            "a model over ranks"
        )
