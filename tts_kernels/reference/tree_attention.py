"""Specification of `tts_kernels.tree_attention`: every branch on its own, in float64."""

from __future__ import annotations

import torch
from torch import Tensor

from tts_kernels.reference.gather_kv import gather_kv


def tree_attention(
    q: Tensor,
    k_slots: Tensor,
    v_slots: Tensor,
    block_tables: Tensor,
    lengths: Tensor,
    query_lens: Tensor,
    *,
    page_size: int = 16,
    scale: float | None = None,
    window: int | None = None,
    logits_soft_cap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """The last query_lens[b] tokens of each branch attend to all tokens up to themselves, but to none of an
    evicted page (-1 in its block table).

    Args:
        q: [T, num_q_heads, d], branch by branch.
        k_slots, v_slots: [num_slots, num_kv_heads, d].
        block_tables, lengths, query_lens: [B, P], [B], [B].

    Returns:
        out [T, num_q_heads, d] and natural-log lse [T, num_q_heads], float64.
    """
    outs, lses = [], []
    group = q.shape[1] // k_slots.shape[1]
    scale = q.shape[2] ** -0.5 if scale is None else scale
    rows = torch.split(q.double(), query_lens.tolist())
    for q_branch, table, length in zip(rows, block_tables, lengths.tolist(), strict=True):
        k, v = gather_kv(k_slots.double(), v_slots.double(), table, length, page_size)
        key = torch.arange(length)
        held = table[key // page_size] >= 0
        v[~held] = 0
        k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
        s = torch.einsum("qhd,khd->hqk", q_branch, k) * scale
        if logits_soft_cap is not None:
            s = logits_soft_cap * torch.tanh(s / logits_soft_cap)
        position = key[length - len(q_branch) :, None]
        seen = held & (key <= position) & (key > position - (length + 1 if window is None else window))
        s = s.masked_fill(~seen, -torch.inf)
        outs.append(torch.einsum("hqk,khd->qhd", s.softmax(-1), v))
        lses.append(s.logsumexp(-1).T)
    return torch.cat(outs), torch.cat(lses)
