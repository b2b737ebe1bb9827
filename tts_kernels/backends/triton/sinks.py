"""Attention sinks: one logit per query head that takes part in its softmax and has no value."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def with_sinks(out, lse, sinks_ptr, head, mask):
    """Adds the sinks of the heads to (out, lse) of rows [rows, channels] and [rows].

    Rows outside the mask have none.
    """
    sink = tl.load(sinks_ptr + head, mask=mask, other=-float("inf"))
    top = tl.maximum(lse, sink)
    nothing = top == -float("inf")  # nothing seen and no sink: (0, -inf), not NaN
    shift = tl.where(nothing, 0.0, top)
    share = tl.exp(lse - shift)
    total = tl.where(nothing, 1.0, share + tl.exp(sink - shift))
    return out * (share / total)[:, None], tl.where(nothing, top, shift + tl.log(total))
