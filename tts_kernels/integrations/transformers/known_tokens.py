"""Which tokens the rows of a `TreeCache` hold, as far as it was told: keys and values do not show them."""

from __future__ import annotations

import torch
from torch import Tensor

from .errors import UnsupportedError

# In place of token ids
PADDING = -1
UNKNOWN = -2  # of a beam that ran last, which need not be an answer, or of a call that an exception ended


def known_tokens(ids: Tensor, mask: Tensor | None, rows: int, columns: int, *, rest_unknown: bool) -> Tensor:
    """int64 [rows, K] on the CPU, the first K columns of the rows.

    ids: [n, S], each of rows // n rows. mask: [n', at most S], 0 for padding. columns: that the rows hold.
    rest_unknown: whether those behind ids are UNKNOWN, and K is columns. Otherwise K is S, or columns.
    """
    known = ids.detach().cpu().long().repeat_interleave(rows // len(ids), 0)[:, :columns]
    if mask is not None:
        padding = mask.cpu().repeat_interleave(rows // len(mask), 0)[:, :columns] == 0
        known = torch.cat(
            [known[:, : padding.shape[1]].masked_fill(padding, PADDING), known[:, padding.shape[1] :]], 1
        )
    if rest_unknown:
        known = torch.cat([known, known.new_full((rows, columns - known.shape[1]), UNKNOWN)], 1)
    return known


def refuse_other_tokens(known: Tensor, ids: Tensor, mask: Tensor | None) -> None:
    """Raises UnsupportedError where prompts begin with other tokens than the rows that go on with them.

    known: of `known_tokens`. ids: [n, S], each for len(known) // n rows; mask: the same, None: no padding.
    """
    repeats = len(known) // len(ids)
    width = min(known.shape[1], ids.shape[1])
    got, held = ids.cpu().repeat_interleave(repeats, 0)[:, :width], known[:, :width]
    other = (got != held) & (held != PADDING)
    if mask is not None:
        other &= mask.cpu().repeat_interleave(repeats, 0)[:, :width] != 0
    if not other.any():
        return
    row, column = other.nonzero()[0].tolist()
    if held[row, column] == UNKNOWN:
        raise UnsupportedError(
            f"input_ids: got prompts that go on behind column {column}, where the cache holds tokens that it "
            "does not know: of beams that ran last, which need not be the answers, or of a call that an "
            f"exception ended; call cache.crop({column} - cache.get_seq_length()), cache.reset(), or "
            "cache.remember(ids, mask) with what the rows hold"
        )
    raise UnsupportedError(
        f"input_ids: got token {got[row, column]} in column {column} of row {row // repeats}, expected "
        f"{held[row, column]}, which the cache holds there; pass the prompts that it was filled with and "
        "what comes behind them, or call cache.reset() before others"
    )
