"""Specification of `tts_kernels.score_pages`: every query on its own, in float64."""

from __future__ import annotations

import torch
from torch import Tensor

from .page_summaries import slow_channels


def score_pages(
    q: Tensor,
    summaries: Tensor,
    block_tables: Tensor,
    lengths: Tensor,
    query_lens: Tensor,
    *,
    page_size: int = 16,
    scale: float | None = None,
) -> Tensor:
    """Estimated share of each page in the attention of each query, mean over the heads of the GQA group.

    A page of n visible tokens counts as n keys with the logit scale * (q . mean), or with the bound
    scale * sum_j max(q_j min_j, q_j max_j), or the largest scale * (q . mean) of its quarters' slow channels.

    Args:
        q: [T, num_q_heads, d], branch by branch.
        summaries: [num_pages, num_kv_heads, S, channels]: S = 1 means, 2 minima and maxima, 4 quarters.
        block_tables, lengths, query_lens: [B, P], [B], [B]; -1 in a table is an evicted page.

    Returns:
        [num_kv_heads, T, P] float64, P the most pages of a branch with queries; each row sums to 1.
    """
    heads, vectors = summaries.shape[1:3]
    d = q.shape[2]
    group = q.shape[1] // heads
    scale = d**-0.5 if scale is None else scale
    tables = list(zip(block_tables, lengths.tolist(), query_lens.tolist(), strict=True))
    columns = max((-(-length // page_size) for _, length, n in tables if n), default=0)
    scores = torch.zeros((heads, q.shape[0], columns), dtype=torch.float64)
    row = 0
    for table, length, num_queries in tables:
        for position in range(length - num_queries, length):
            seen = torch.arange(position // page_size + 1)
            seen = seen[table[seen] >= 0]
            visible = (position + 1 - seen * page_size).clamp(max=page_size).double()
            pages = summaries[table[seen].long()].double().permute(1, 0, 2, 3)  # [heads, n, S, d]
            rows = q[row].double().view(heads, group, 1, 1, d)
            if vectors == 4:
                products = (rows[..., slow_channels(d)] * pages[:, None]).sum(4).amax(3)
            else:
                products = (rows * pages[:, None]).amax(3).sum(3)
            scores[:, row, seen] = (scale * products + visible.log()).softmax(-1).mean(1)
            row += 1
    return scores
