"""The ranks that hold one model together under torchrun."""

from __future__ import annotations

import os
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from ..errors import MeshError
from .errors import UsageError

_ARRIVAL_SECONDS = 120  # for all ranks to import their packages and connect; torchrun starts them together


def mesh_of_torchrun(device: str) -> DeviceMesh | None:
    """Returns the mesh of all processes that torchrun started, by its environment; None without torchrun.

    Raises MeshError if a rank does not come: torch alone would wait for half an hour.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1 or not dist.is_torchelastic_launched():
        return None
    kind = torch.device(device).type
    if kind == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    try:
        dist.init_process_group(timeout=timedelta(seconds=_ARRIVAL_SECONDS))
    except dist.DistError as error:
        raise MeshError(
            f"rank {os.environ['RANK']} of {size}: another rank did not come within {_ARRIVAL_SECONDS} s, or "
            f"the first one cannot be reached at {os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']} "
            f"({str(error).partition(chr(10))[0]:.200}); start all again, and see each one's errors"
        ) from error
    return init_device_mesh(kind, (size,))


def refuse_torchrun() -> None:
    """Raises UsageError if torchrun started several processes of a command that does not support ranks."""
    if dist.is_torchelastic_launched() and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError(
            f"got {os.environ['WORLD_SIZE']} ranks of torchrun, expected one process: `search` alone splits "
            "a model over ranks"
        )
