"""The pages that each query reads in sparse attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..checks import Array, Guard, Number, Rule, Signature, integer, require_dense

_CHOSEN = Guard(
    "Selection.from_bools",
    ("chosen",),
    lambda _: Signature(Array("chosen", "num_kv_heads, T, P", (torch.bool,), packed=0), home="chosen"),
)
_MASK = Guard(
    "Selection.to_bools",
    ("mask", "columns"),
    lambda _: Signature(
        Array("mask", "num_kv_heads, T, words", (torch.int32,), packed=0, label="selection.mask"),
        Number("columns", "columns >= 0"),
        Rule("columns", "columns <= 32 * words"),
        home="mask",
    ),
)


class SelectionCounts(NamedTuple):
    """What attention over a selection reads.

    Attributes:
        pairs: (query, page, KV head) triples that are read.
        loads: distinct (page, KV head) pairs among them.
    """

    pairs: int
    loads: int


@dataclass(frozen=True, eq=False)
class Selection:
    """Pages that T queries read, chosen per KV head.

    A column is the index of a page on a branch's path: position // page_size.

    Attributes:
        mask: int32 [num_kv_heads, T, W], on the pages' device, T in the order of q, W = ceil(P / 32) for P
            columns. Bit c % 32 of word c // 32 of mask[h, t] is set if the query heads of KV head h read
            column c for query t. Columns that the query does not see are never read, whatever their bits.
    """

    mask: Tensor

    def __post_init__(self) -> None:
        require_dense("selection.mask", self.mask, fake=True)

    @classmethod
    def from_bools(cls, chosen: Tensor) -> Selection:
        """Makes a selection from bool [num_kv_heads, T, P].

        Raises:
            TypeError, ValueError: the dtype or number of dimensions is another.
        """
        _CHOSEN.check((chosen,))
        heads, queries, columns = chosen.shape
        words = -(-columns // 32)
        bits = torch.zeros((heads, queries, words * 32), dtype=torch.int64, device=chosen.device)
        bits[..., :columns] = chosen
        weights = 2 ** torch.arange(32, dtype=torch.int64, device=chosen.device)
        words64 = (bits.view(heads, queries, words, 32) * weights).sum(-1)
        return cls((words64 - (words64 >> 31 << 32)).int())  # bit 31 is the sign of an int32

    def to_bools(self, columns: int) -> Tensor:
        """Returns bool [num_kv_heads, T, columns], columns <= 32 W; the inverse of `from_bools`.

        Raises:
            TypeError, ValueError: columns is out of range, or the mask is invalid.
        """
        _MASK.check((self.mask, integer("columns", columns)))
        shifts = torch.arange(32, dtype=torch.int32, device=self.mask.device)
        bits = (self.mask[..., None] >> shifts) & 1
        return bits.flatten(2)[..., :columns].bool()
