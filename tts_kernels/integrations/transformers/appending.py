"""New tokens of a batch: which ones there are, and which slots of the tree they take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ... import KVPool, KVTree
from .errors import MaskError, UnsupportedError
from .origins import Int32Array
from .prefixes import Borrowed, shared_prefixes


@dataclass(frozen=True)
class Writes:
    """Where keys and values of a step's T new tokens go.

    slots: int32 [W]. tokens: int64 [W], which of the T are written; None: all. borrowed: the others; None:
    none.
    """

    slots: Tensor
    tokens: Tensor | None = None
    borrowed: Borrowed | None = None


def new_tokens(
    tokens: npt.NDArray[np.bool_] | None, before: Sequence[int], past: int, columns: int
) -> Int32Array:
    """Returns the number of each row's new tokens, int32 [B]; they are in its last columns.

    tokens: bool [B, past + columns], which columns hold a token; None: all. before: tokens of each row.

    Raises:
        UnsupportedError: the rows are not padded on the left, or old tokens are missing.
    """
    lengths = np.array(before)
    if tokens is None:
        if (lengths != past).any():
            raise UnsupportedError(
                "attention_mask: got none, or nothing but ones, but rows of the cache have padding; pass the "
                "mask of the forwards before, with a column of ones for each new token"
            )
        return np.full(len(before), columns, dtype=np.int32)
    old, new = np.split(tokens, [past], axis=1)
    counts: Int32Array = new.sum(1, dtype=np.int32)
    if (old.sum(1) != lengths).any():
        raise MaskError(
            f"attention_mask: got rows of {old.sum(1).tolist()} tokens before the new ones, expected "
            f"{list(before)}, which the cache holds; it cannot hide tokens later"
        )
    at_the_end = new == (np.arange(columns) >= columns - counts[:, None])
    if not at_the_end.all() or ((counts < columns) & (lengths > 0)).any():
        raise MaskError(
            "attention_mask: got zeros behind a row's first token, expected padding on the left only; "
            'make the batch with padding_side="left"'
        )
    return counts


def append(
    tree: KVTree,
    pool: KVPool,
    branches: list[int],
    kv: tuple[Tensor, Tensor],
    tokens: Sequence[Int32Array],
    *,
    share: bool,
) -> tuple[list[int], Writes]:
    """Takes slots for the new tokens, for all or none.

    branches: of the rows; with `share`, without tokens yet: rows that begin alike then take slots once.
    kv: [B, num_kv_heads, S, head_dim] of the first layer. tokens: ids of each row's new ones, in the last S.

    Returns the branches of the rows and where their new tokens go. Raises OutOfPagesError.
    """
    keys, values = kv
    if share and len(tokens) > 1:
        starts = [keys.shape[2] - len(row) for row in tokens]
        prefixes = shared_prefixes(keys, values, starts, pool.page_size)
        if any(common for _, common in prefixes):
            shared, writes = _append_shared(tree, prefixes, tokens, keys.device)
            for branch in branches:
                tree.release(branch)
            return shared, writes
    added = tree.append(branches, tokens)
    if len(added.copies):
        pool.copy(torch.from_numpy(added.copies).to(keys.device))
    return branches, Writes(torch.from_numpy(added.slots).to(keys.device))


def _append_shared(
    tree: KVTree, prefixes: Sequence[tuple[int, int]], tokens: Sequence[Int32Array], device: torch.device
) -> tuple[list[int], Writes]:
    """Appends rows that share whole pages, so nothing is copied. prefixes: of `shared_prefixes`."""
    counts = [len(row) for row in tokens]
    owner = np.arange(sum(counts))
    ends = np.cumsum(counts)
    branches: list[int] = []
    slots = []
    try:
        for row, (other, common) in enumerate(prefixes):
            branches += tree.fork(branches[other], at=common) if common else [tree.create()]
            slots.append(tree.append(branches[-1:], [tokens[row][common:]]).slots)
            begin, earlier = ends[row] - counts[row], ends[other] - counts[other]
            owner[begin : begin + common] = owner[earlier : earlier + common]
    except BaseException:  # also on an interrupt: nobody else knows these branches
        for branch in branches:
            tree.release(branch)
        raise
    own = owner == np.arange(len(owner))
    taken, borrowing = np.flatnonzero(own), np.flatnonzero(~own)
    arrays = np.concatenate(slots), taken, borrowing, owner[borrowing]
    written, owned, borrowers, owners = (torch.from_numpy(array).to(device) for array in arrays)
    return branches, Writes(written, owned, Borrowed(borrowers, owners))
