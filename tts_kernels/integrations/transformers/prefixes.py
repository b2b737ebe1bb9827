"""Rows of a batch that begin with the same tokens, found by their keys and values in the first layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import UnsupportedError

# Rounding of equal rows of one product differs by less, in shares of the largest number
_ROUNDING = {torch.float32: 1e-3, torch.bfloat16: 0.1}


def shared_prefixes(
    keys: Tensor, values: Tensor, starts: Sequence[int], page_size: int
) -> list[tuple[int, int]]:
    """For each row an earlier one that begins like it, and how many tokens they share: whole pages.

    keys, values: [B, num_kv_heads, S, head_dim] of the first layer, which depend on a token and its position
    alone. starts: the first column of each row that holds a token. (0, 0) where there is no such row.
    """
    shared = []
    seen: dict[bytes, list[int]] = {}  # first page of keys -> rows that begin with it
    for row, start in enumerate(starts):
        page = keys[row, :, start : start + page_size].contiguous().view(torch.uint8)
        others = seen.setdefault(page.cpu().numpy().tobytes(), [])
        best = (0, 0)
        for other in others:
            common = _common(keys, values, (row, start), (other, starts[other])) // page_size * page_size
            best = max(best, (common, -other))
        others.append(row)
        shared.append((-best[1], best[0]))
    return shared


def _common(keys: Tensor, values: Tensor, first: tuple[int, int], second: tuple[int, int]) -> int:
    """Leading tokens with equal keys and values; first, second: row and first column."""
    count = keys.shape[2] - max(first[1], second[1])
    same = torch.ones(count, dtype=torch.bool, device=keys.device)
    for rows in keys, values:
        one, other = (rows[row, :, start : start + count] for row, start in (first, second))
        same &= (one == other).all(-1).all(0)
    return int(same.int().cumprod(0).sum())


@dataclass(frozen=True)
class Borrowed:
    """New tokens whose keys and values another row has written: int64 [N] numbers among the new tokens."""

    tokens: Tensor
    owners: Tensor

    def check(self, layer: int, *written: Tensor) -> None:
        """Raises UnsupportedError where they are not those of the owners in this layer.

        written: keys and values [T, num_kv_heads, head_dim] of all new tokens.
        """
        for rows in written:
            difference = (rows[self.tokens] - rows[self.owners]).abs().max()
            if difference > _ROUNDING[rows.dtype] * rows.abs().max():
                raise UnsupportedError(
                    "share: got True, but rows whose keys and values agree in the first layer differ in "
                    f"layer {layer}; pass share=False to TreeCache"
                )
