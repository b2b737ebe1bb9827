"""Finds rows of a batch that begin with the same tokens, by their keys and values in the first layer."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import UnsupportedError

# Upper bound of the rounding difference of equal rows of one product, relative to the largest number
_ROUNDING = {torch.float32: 1e-3, torch.bfloat16: 0.1}


def shared_prefixes(
    keys: Tensor, values: Tensor, starts: Sequence[int], page_size: int
) -> list[tuple[int, int]]:
    """Returns for each row an earlier one that begins like it, and how many tokens they share: whole pages.

    keys, values: [B, num_kv_heads, S, head_dim] of the first layer, which depend on a token and its position
    alone. starts: the first column of each row that holds a token. (0, 0) if there is no such row. Each key
    is read once, whatever the number of rows.
    """
    shared = []
    seen: dict[bytes, int] = {}  # digest of some leading pages -> the first row that begins with them
    for row, start in enumerate(starts):
        tokens = torch.cat([keys[row, :, start:], values[row, :, start:]]).transpose(0, 1).contiguous()
        content = tokens.view(torch.uint8).flatten(1).cpu().numpy()
        prefix, owner, common = hashlib.blake2b(digest_size=16), 0, 0
        for end in range(page_size, len(content) + 1, page_size):
            prefix.update(content[end - page_size : end].data)
            first = seen.setdefault(prefix.digest(), row)
            if first != row:
                owner, common = first, end
        shared.append((owner, common))
    return shared


@dataclass(frozen=True)
class Borrowed:
    """New tokens whose keys and values another row has written: int64 [N] indices among the new tokens."""

    tokens: Tensor
    owners: Tensor

    def check(self, layer: int, *written: Tensor) -> None:
        """Raises UnsupportedError if they differ from the owners' in this layer.

        written: keys and values [T, num_kv_heads, head_dim] of all new tokens.
        """
        for rows in written:
            difference = (rows[self.tokens] - rows[self.owners]).abs().max()
            if not difference <= _ROUNDING[rows.dtype] * rows.abs().max():  # NaN is no agreement
                raise UnsupportedError(
                    "share: got True, but rows whose keys and values agree in the first layer differ in "
                    f"layer {layer}; pass share=False to TreeCache, and look for NaN"
                )
