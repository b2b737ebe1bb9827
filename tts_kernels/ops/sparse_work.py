"""Scores and chooses pages with a DevicePlan: on plain pages, without waiting for the device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..backends.choice import kernel
from ..backends.launch import SelectOptions
from ..checks import Array, Guard, Number, Rule, Signature
from ..checks.pages import FLOAT32, INT32, summary_dtype
from ..plans.device_plan import DevicePlan
from ..plans.selection import Selection


def _score_takes(values: Mapping[str, Any]) -> Signature:
    dtype: torch.dtype = values["pages_dtype"]
    # With 8-bit pages summaries are bfloat16 and q may be float32.
    rows = (torch.bfloat16, torch.float32) if dtype.itemsize == 1 else (dtype,)
    return Signature(
        *_PLANNED,
        Array("work", "work_ints", INT32, label="plan.work"),
        Array("summaries", "num_pages, num_kv_heads, S, head_dim", (summary_dtype(dtype),)),
        Rule("summaries", "num_pages >= planned_pages and 1 <= S <= 2"),
        Array("q", "rows, num_q_heads, head_dim", rows, packed=1),
        Rule("q", "rows >= planned_queries"),
        Number("scale", "2**-126 <= scale <= 2**64"),
        home="summaries",
    )


_PLANNED = (
    Number("num_q_heads", "num_q_heads >= 1"),
    Number("num_kv_heads", "num_kv_heads >= 1"),
    Number("head_dim", "head_dim >= 1"),
    Number("planned_pages", "planned_pages >= 0"),
    Number("planned_queries", "planned_queries >= 0"),
)
_SCORE = Guard(
    "score_pages",
    ("q", "summaries", "work", "scale", "pages_dtype", *(number.name for number in _PLANNED)),
    _score_takes,
)
_SELECT = Guard(
    "select_top_pages",
    ("scores", "work", "budget", "tail_begin", "groups", "num_kv_heads", "planned_queries", "columns"),
    lambda _: Signature(
        Number("num_kv_heads", "num_kv_heads >= 1"),
        Number("planned_queries", "planned_queries >= 0"),
        Number("columns", "columns >= 0"),
        Array("work", "work_ints", INT32, label="plan.work"),
        Array("scores", "num_kv_heads, rows, columns", FLOAT32),
        Rule("scores", "rows >= planned_queries"),
        Array("budget", "rows", INT32, optional=True),
        Array("tail_begin", "rows", INT32, optional=True),
        Array("groups", "rows", INT32, optional=True),
        home="work",
    ),
)


def score_pages_work(q: Tensor, summaries: Tensor, plan: DevicePlan, scale: float | None) -> Tensor:
    """`tts_kernels.score_pages` with a DevicePlan."""
    scale = plan.head_dim**-0.5 if scale is None else scale
    planned = plan.num_q_heads, plan.num_kv_heads, plan.head_dim, plan.num_pages, plan.num_queries
    _SCORE.check((q, summaries, plan.work, scale, plan.dtype, *planned))
    shape = (plan.num_kv_heads, q.shape[0], plan.max_columns)
    scores = torch.empty(shape, dtype=torch.float32, device=q.device)
    kernel("score_pages", summaries)(q, summaries, plan.launch, plan.page_size, scale, scores)
    return scores


def select_top_pages_work(scores: Tensor, plan: DevicePlan, options: SelectOptions) -> Selection:
    """`tts_kernels.select_top_pages` with a DevicePlan; the options are already checked."""
    budget = options.budget if isinstance(options.budget, Tensor) else None
    numbers = plan.num_kv_heads, plan.num_queries, plan.max_columns
    _SELECT.check((scores, plan.work, budget, options.tail_begin, options.groups, *numbers))
    heads, rows, columns = scores.shape
    options = options._replace(sink=min(options.sink, columns), recent=min(options.recent, columns))
    mask = torch.empty((heads, rows, -(-columns // 32)), dtype=torch.int32, device=scores.device)
    kernel("select_top_pages", scores)(scores, plan.launch, plan.page_size, options, mask)
    return Selection(mask)
