"""Attention sinks: a logit of each query head that takes part in its softmax and has no value."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def with_sinks(out, lse, sinks_ptr, head, mask):
    """(out, lse) of rows [rows, channels] and [rows] whose softmax did not have the sinks of their heads yet.

    Rows outside the mask have none.
    """
    sink = tl.load(sinks_ptr + head, mask=mask, other=-float("inf"))
    top = tl.maximum(lse, sink)
    shift = tl.where(top == -float("inf"), 0.0, top)  # nothing seen and no sink: 0, not NaN
    share = tl.exp(lse - shift)
    total = share + tl.exp(sink - shift)
    weight = share / tl.where(total == 0, 1.0, total)
    return out * weight[:, None], shift + tl.log(total)
