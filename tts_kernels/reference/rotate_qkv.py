"""Specification of rotate_qkv."""

from __future__ import annotations

import torch
from torch import Tensor

from .rms_norm import rms_norm


def rotate_qkv(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    num_q_heads: int,
    num_kv_heads: int,
    *,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    eps: float = 1e-6,
) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v in float64."""
    heads = qkv.double().reshape(len(qkv), num_q_heads + 2 * num_kv_heads, cos.shape[-1])
    q, k, v = torch.split(heads, [num_q_heads, num_kv_heads, num_kv_heads], 1)
    if q_norm is not None:
        q = rms_norm(q, q_norm, eps)
    if k_norm is not None:
        k = rms_norm(k, k_norm, eps)
    return _rotated(q, cos, sin), _rotated(k, cos, sin), v


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return x * cos[:, None].double() + torch.cat([-second, first], -1) * sin[:, None].double()
