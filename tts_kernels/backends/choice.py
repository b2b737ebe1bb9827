"""Chooses the kernels that serve an operator on plain pages: Triton or CUDA C++.

The environment variable TTS_KERNELS_BACKEND ("triton" or "cuda") forces one of the two, except for operators
that only Triton has. It is read when an operator first meets a device, a dtype and a head_dim.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from functools import lru_cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from .. import _core

_log = logging.getLogger(__name__)
_VARIABLE = "TTS_KERNELS_BACKEND"
_IN_CUDA = ("append_kv", "copy_pages", "tree_attention")  # only Triton has the others

# The faster backend of an operator by compute capability; Triton where there is no entry. The table is empty
# because nothing has been measured yet.
_FASTER: dict[tuple[str, tuple[int, int]], str] = {}


def kernel(op: str, k_pages: Tensor) -> Callable[..., None]:
    """Returns the launcher of an operator for plain pages like these.

    Raises:
        ValueError: no kernel serves this device, dtype and head_dim, or the forced backend has none.
        ImportError: Triton is not installed.
    """
    return _launcher(op, k_pages.device, k_pages.dtype, k_pages.shape[-1])


def max_tile_height(head_dim: int, dtype: torch.dtype, device: torch.device) -> int:
    """Returns the height of the tallest tile that the attention kernel for such pages accepts."""
    return 64 if choose("tree_attention", device, dtype, head_dim) == "cuda" or head_dim > 128 else 128


@lru_cache
def choose(op: str, device: torch.device, dtype: torch.dtype, head_dim: int) -> str:
    """Returns the backend of an operator, "triton" or "cuda"; raises like `kernel`."""
    forced = os.environ.get(_VARIABLE)
    if forced not in (None, "triton", "cuda"):
        raise ValueError(f"{_VARIABLE}: got {forced!r}, expected 'triton' or 'cuda'")
    if device.type == "cpu":
        if dtype == torch.float8_e4m3fn:
            raise ValueError(
                "k_pages, v_pages: got torch.float8_e4m3fn on the CPU, where Triton's interpreter rounds it "
                "wrongly; expected torch.int8, or a GPU"
            )
        return "triton"
    if device.type != "cuda":
        raise ValueError(
            f"k_pages, v_pages: got tensors on {device}, expected cpu or cuda (no kernel for that)"
        )
    capability = torch.cuda.get_device_capability(device)
    if capability < (8, 0):
        raise ValueError(
            f"k_pages, v_pages: got tensors on {device} of compute capability "
            f"{capability[0]}.{capability[1]}, expected 8.0 or newer"
        )
    if dtype == torch.float8_e4m3fn and capability < (8, 9):
        raise ValueError(
            f"k_pages, v_pages: got torch.float8_e4m3fn on {device} of compute capability "
            f"{capability[0]}.{capability[1]}, expected 8.9 or newer, or torch.int8"
        )
    if op not in _IN_CUDA:
        return "triton"
    if forced == "cuda":
        _check_cuda(op, dtype, head_dim)
    return forced or _FASTER.get((op, capability), "triton")


def _check_cuda(op: str, dtype: torch.dtype, head_dim: int) -> None:
    if not hasattr(_core, "cuda"):
        raise ValueError(
            f"{_VARIABLE}: got 'cuda', but this build has no CUDA kernels; build with TTS_CUDA=ON"
        )
    if not import_module(".cuda", __package__).supports(op, dtype, head_dim):
        raise ValueError(
            f"{_VARIABLE}: got 'cuda', whose {op} serves torch.float16 and torch.bfloat16 with head_dim 64 "
            f"or 128, and pages of {dtype} with head_dim {head_dim}; expected 'triton'"
        )


@lru_cache
def _launcher(op: str, device: torch.device, dtype: torch.dtype, head_dim: int) -> Callable[..., None]:
    name = choose(op, device, dtype, head_dim)
    try:
        module: Any = import_module(f".{name}", __package__)
    except ModuleNotFoundError as missing:
        if missing.name != "triton":
            raise
        raise ImportError(
            f"{op}: plain pages need Triton, which is not installed; pip install 'tts-kernels[gpu]' (in a "
            "checkout: '.[gpu]')"
        ) from missing
    if name == "triton" and device.type == "cpu" and not module.INTERPRETED:
        raise ValueError(
            "k_pages, v_pages: got plain pages on the CPU, which run in Triton's interpreter only; set "
            "TRITON_INTERPRET=1 before Python starts, or make the pool with layout='packed'"
        )
    _log.info("%s on %s, %s, head_dim %d: %s", op, device, dtype, head_dim, name)
    launcher: Callable[..., None] = getattr(module, op)
    return launcher if device.type == "cpu" else _guarded(launcher, device)


def _guarded(launcher: Callable[..., None], device: torch.device) -> Callable[..., None]:
    """Makes the tensors' device current during the launch: launches go to the current device."""

    def launch(*args: Any) -> None:
        if torch.cuda.current_device() == device.index:
            launcher(*args)
        else:
            with torch.cuda.device(device):
                launcher(*args)

    return launch
