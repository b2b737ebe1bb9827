"""Integers of 4 and 8 bits in words of 32, as checkpoints have them."""

from __future__ import annotations

import torch
from torch import Tensor


def unpacked(words: Tensor, bits: int) -> Tensor:
    """Converts int32 [..., n] to uint8 [..., 32 / bits n], the lowest bits of a word first."""
    found = words.contiguous().view(torch.uint8)
    return found if bits == 8 else torch.stack([found & 15, found >> 4], -1).flatten(-2)
