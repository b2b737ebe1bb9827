"""Specification of rotate_qkv."""

from __future__ import annotations

import torch
from torch import Tensor


def rotate_qkv(
    qkv: Tensor, cos: Tensor, sin: Tensor, num_q_heads: int, num_kv_heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v in float64."""
    heads = qkv.double().reshape(len(qkv), num_q_heads + 2 * num_kv_heads, cos.shape[-1])
    q, k, v = torch.split(heads, [num_q_heads, num_kv_heads, num_kv_heads], 1)
    return _rotated(q, cos, sin), _rotated(k, cos, sin), v


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return x * cos[:, None].double() + torch.cat([-second, first], -1) * sin[:, None].double()
