"""Scoring and choosing pages by a DevicePlan: on plain pages, without a wait for the device."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tts_kernels import backend
from tts_kernels.device_plan import DevicePlan, SelectOptions
from tts_kernels.ops._common import check_devices, summary_dtype
from tts_kernels.selection import Selection


def score_pages_work(q: Tensor, summaries: Tensor, plan: DevicePlan, scale: float | None) -> Tensor:
    """`tts_kernels.score_pages` with a DevicePlan."""
    check_devices(q=q, k_pages=summaries, plan=plan.work)
    expected = (plan.num_kv_heads, plan.head_dim)
    if not (
        summaries.dim() == 4
        and (summaries.shape[1], summaries.shape[3]) == expected
        and summaries.shape[0] >= plan.num_pages
        and summaries.shape[2] in (1, 2)
        and summaries.is_contiguous()
    ):
        raise ValueError(
            f"summaries: got shape {list(summaries.shape)} and strides {summaries.stride()}, expected "
            f"contiguous [>= {plan.num_pages}, {plan.num_kv_heads}, 1 or 2, {plan.head_dim}] as planned"
        )
    # Beside pages of 8 bits summaries are bfloat16 and q may be float32.
    expected_dtype = summary_dtype(plan.dtype)
    if summaries.dtype != expected_dtype:
        raise TypeError(f"summaries: got {summaries.dtype}, expected {expected_dtype} for {plan.dtype} pages")
    if q.dtype != expected_dtype and not (plan.dtype.itemsize == 1 and q.dtype == torch.float32):
        raise TypeError(f"q: got {q.dtype}, expected {expected_dtype}, the dtype of the summaries")
    if q.dim() != 3 or q.shape[1:] != (plan.num_q_heads, plan.head_dim) or q.shape[0] < plan.num_queries:
        raise ValueError(
            f"q: got shape {list(q.shape)}, expected [>= {plan.num_queries}, {plan.num_q_heads}, "
            f"{plan.head_dim}] as planned"
        )
    if q.stride(2) != 1:
        raise ValueError(f"q: got strides {q.stride()}, expected contiguous channels (last stride 1)")
    scale = plan.head_dim**-0.5 if scale is None else scale
    if not 0 < scale < math.inf:
        raise ValueError(f"scale: got {scale}, expected a finite number > 0")
    shape = (plan.num_kv_heads, q.shape[0], plan.max_columns)
    scores = torch.empty(shape, dtype=torch.float32, device=q.device)
    backend.kernel("score_pages", summaries)(q, summaries, plan.launch, plan.page_size, scale, scores)
    return scores


def check_rows(name: str, value: object, scores: Tensor) -> Tensor:
    """`value`; raises unless it is a tensor of one int32 for each row of scores [num_kv_heads, T, P]."""
    if not isinstance(value, Tensor) or value.dtype != torch.int32:
        got = value.dtype if isinstance(value, Tensor) else repr(value)
        raise TypeError(f"{name}: got {got}, expected a tensor of torch.int32, one number a row of scores")
    rows = scores.shape[1]
    if value.shape != (rows,) or value.device != scores.device or not value.is_contiguous():
        raise ValueError(
            f"{name}: got shape {list(value.shape)} on {value.device}, expected contiguous [{rows}] on "
            f"{scores.device}, one number a row of scores"
        )
    return value


def select_top_pages_work(scores: Tensor, plan: DevicePlan, options: SelectOptions) -> Selection:
    """`tts_kernels.select_top_pages` with a DevicePlan; all but scores and budget are checked."""
    if scores.device != plan.work.device or not scores.is_contiguous():
        raise ValueError(
            f"scores: got strides {scores.stride()} on {scores.device}, expected contiguous on "
            f"{plan.work.device}, where the plan is"
        )
    heads, rows, columns = scores.shape
    if (heads, columns) != (plan.num_kv_heads, plan.max_columns) or rows < plan.num_queries:
        raise ValueError(
            f"scores: got shape {list(scores.shape)}, expected [{plan.num_kv_heads}, >= {plan.num_queries}, "
            f"{plan.max_columns}] for this plan"
        )
    budget = options.budget
    if isinstance(budget, bool) or not isinstance(budget, int):
        check_rows("budget", budget, scores)
    elif budget < 1:
        raise ValueError(f"budget: got {budget}, expected at least 1 page")
    else:
        options = options._replace(budget=min(budget, 2**31 - 1))
    options = options._replace(sink=min(options.sink, columns), recent=min(options.recent, columns))
    mask = torch.empty((heads, rows, -(-columns // 32)), dtype=torch.int32, device=scores.device)
    backend.kernel("select_top_pages", scores)(scores, plan.launch, plan.page_size, options, mask)
    return Selection(mask)
