"""Specification of int8 pages: values are bytes times the scale of their page and head."""

from __future__ import annotations

import torch
from torch import Tensor


def quantize(x: Tensor, scale: Tensor) -> Tensor:
    """Bytes of tokens x [n, heads, d] at scale [heads], rounded half to even in float32."""
    return (x.float() / scale[:, None]).round().to(torch.int8)


def dequantize(stored: Tensor, scale: Tensor) -> Tensor:
    """The float32 values that bytes [n, heads, d] stand for."""
    return stored.float() * scale[:, None]


def append_int8(stored: Tensor, scale: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Bytes and scale [heads] of a page whose bytes are [m, heads, d], m >= 0, after tokens x [n, heads, d].

    The largest value of the page becomes 127; zeros, and what is too small for a normal float32 scale, have
    the scale 1. A scale never shrinks, and where it grows the tokens before are rounded again from the values
    that they had.
    """
    needed = x.float().abs().amax(dim=(0, 2)) / 127
    needed = torch.where(needed < torch.finfo(torch.float32).tiny, 0.0, needed)
    zeros = (stored == 0).all(dim=2).all(dim=0)
    grown = torch.maximum(torch.where(zeros, 0.0, scale), needed)
    grown = torch.where(grown > 0, grown, 1.0)
    return torch.cat([quantize(dequantize(stored, scale), grown), quantize(x, grown)]), grown
