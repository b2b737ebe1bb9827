"""Specification of `tts_kernels.tree_attention`: every branch on its own, in float64."""

from __future__ import annotations

import torch
from torch import Tensor

from .gather_kv import gather_kv


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
    chosen: Tensor | None = None,
    sinks: Tensor | None = None,
    alibi_slopes: Tensor | None = None,
    attention_chunk: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The last query_lens[b] tokens of each branch attend to all tokens up to themselves.

    Args:
        q: [T, num_q_heads, d], branch by branch.
        k_slots, v_slots: [num_slots, num_kv_heads, d].
        block_tables, lengths, query_lens: [B, P], [B], [B]; -1 in a table is an evicted page, which nobody
            reads.
        chosen: bool [num_kv_heads, T, P], the pages that each query reads; default all.
        sinks: [num_q_heads], a logit of each head that every query sees beside its tokens, without a value.
        alibi_slopes: [num_q_heads], what a logit loses with each position that its key is behind the query.
        attention_chunk: a query sees no key before its chunk of that many positions, counted from 0.

    Returns:
        out [T, num_q_heads, d], natural-log lse [T, num_q_heads], and mass [num_kv_heads, T, P], the share of
        each page in the softmax, mean over the heads of the group; P is the most pages of a branch with
        queries. float64. Sinks are in lse, and no page has their share. A query that reads nothing is
        (0, -inf, 0), with sinks (0, its sink, 0).
    """
    outs, lses = [], []
    kv_heads = k_slots.shape[1]
    with_queries = lengths[query_lens > 0].tolist()
    columns = max((-(-length // page_size) for length in with_queries), default=0)
    mass = torch.zeros((kv_heads, q.shape[0], columns), dtype=torch.float64)
    group = q.shape[1] // k_slots.shape[1]
    scale = q.shape[2] ** -0.5 if scale is None else scale
    rows = torch.split(q.double(), query_lens.tolist())
    row = 0
    for q_branch, table, length in zip(rows, block_tables, lengths.tolist(), strict=True):
        if not len(q_branch):
            continue
        k, v = gather_kv(k_slots.double(), v_slots.double(), table, length, page_size)
        column = torch.arange(length) // page_size
        held = table[column] >= 0
        k, v = (t.masked_fill(~held[:, None, None], 0.0) for t in (k, v))
        k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
        s = torch.einsum("qhd,khd->hqk", q_branch, k) * scale
        if logits_soft_cap is not None:
            s = logits_soft_cap * torch.tanh(s / logits_soft_cap)
        key = torch.arange(length)
        position = key[length - len(q_branch) :, None]
        if alibi_slopes is not None:
            s = s - alibi_slopes.double()[:, None, None] * (position - key)
        seen = (key <= position) & (key > position - (length + 1 if window is None else window))
        if attention_chunk is not None:
            seen = seen & (key >= position - position % attention_chunk)
        queries = slice(row, row + len(q_branch))
        row += len(q_branch)
        reads = (seen & held).expand(kv_heads, -1, -1)
        if chosen is not None:
            reads = reads & chosen[:, queries][..., column]
        s = s.masked_fill(~reads.repeat_interleave(group, dim=0), -torch.inf)
        if sinks is not None:
            sink = sinks.double()[:, None, None].expand(-1, len(q_branch), 1)
            s = torch.cat([s, sink], -1)
        p = (s - s.amax(-1, keepdim=True).clamp(min=-1e300)).exp()
        p = (p / p.sum(-1, keepdim=True).clamp(min=torch.finfo(p.dtype).tiny))[..., :length]
        outs.append(torch.einsum("hqk,khd->qhd", p, v))
        lses.append(s.logsumexp(-1).T)
        by_head = p.view(kv_heads, group, len(q_branch), length).mean(1)
        mass[:, queries].index_add_(2, column, by_head)
    return torch.cat(outs), torch.cat(lses), mass
