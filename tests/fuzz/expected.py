"""What accepted calls have to give, in float64 and from the arguments alone, changed or not."""

from __future__ import annotations

import torch
from torch import Tensor

from tts_kernels import QuantisedWeight, TreePlan, Weight


def close(found: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    """Within what the dtype allows; where the numbers are too large, or none, everything passes."""
    assert found.shape == expected.shape, f"got shape {list(found.shape)}, expected {list(expected.shape)}"
    sound = expected.isfinite() & (expected.abs() < 1e4)
    if not (expected.numel() and sound.all()):
        return
    tolerance = 3e-4 if dtype == torch.float32 else 5e-2
    scale = 1 + expected.abs().max()
    error = (found.double() - expected).abs().max()
    assert error <= tolerance * scale, f"off by {error} of {scale}"


def slots_of(k_pages: Tensor, v_pages: Tensor, scales: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Pages of one layer as float64 [num_pages * page_size, heads, head_dim]: packed ones
    (csrc/cpu/kv_layout.h), or plain ones, which end alike: a call may get one for both K and V."""
    pages, heads = k_pages.shape[:2]
    if k_pages.dim() == 4 and k_pages.shape[-1] == v_pages.shape[-1]:
        k, v = k_pages.transpose(1, 2), v_pages.transpose(1, 2)
    elif k_pages.dtype == torch.bfloat16:
        k, v = k_pages.permute(0, 3, 1, 2, 4), v_pages.permute(0, 2, 4, 1, 3)
    else:
        k, v = k_pages.permute(0, 3, 1, 2), v_pages.permute(0, 2, 1, 3)
    both = [x.reshape(pages, k.shape[1], heads, v.shape[-1]).double() for x in (k, v)]
    if scales is not None:
        both = [x * scales[:, None, :, i, None].double() for i, x in enumerate(both)]
    return both[0].flatten(0, 1), both[1].flatten(0, 1)


def matrix_of(weight: Weight) -> Tensor:
    """[outputs of all panels, inputs], as it was packed; of a quantised weight [outputs, inputs]."""
    panels = weight.panels
    if isinstance(weight, QuantisedWeight):
        return weight.dequantised().double()
    if panels.dtype == torch.bfloat16:
        return panels.transpose(1, 2).flatten(2).flatten(0, 1).double()
    return panels.transpose(1, 2).flatten(0, 1).double()


def linear(x: Tensor, weight: Weight | tuple[Weight, ...]) -> Tensor:
    """Of weights side by side; no gated quantised ones."""
    if isinstance(weight, tuple):
        return torch.cat([linear(x, one) for one in weight], 1)
    out = x.double() @ matrix_of(weight).T
    if weight.bias is not None:
        out = out + weight.bias.double()[: out.shape[1]]
    if weight.gated:
        gate, up = out.view(len(x), out.shape[1] // 32, 2, 16).unbind(2)
        out = (torch.nn.functional.silu(gate) * up).flatten(1)
    return out[:, : weight.outputs]


def swiglu(x: Tensor, gate_up: Weight | tuple[Weight, ...]) -> Tensor:
    """Of a gated weight, or of gate and up side by side."""
    out = linear(x, gate_up)
    if not isinstance(gate_up, tuple) and gate_up.gated:
        return out
    gate, up = out.chunk(2, 1)
    return torch.nn.functional.silu(gate) * up


def paths(plan: TreePlan) -> list[tuple[int, int, list[int]]]:
    """Row of q, position and pages of each query, from the segments that cover it."""
    order, positions, pages = plan.query_order.tolist(), plan.query_position.tolist(), plan.pages.tolist()
    found = []
    for query, (row, position) in enumerate(zip(order, positions, strict=True)):
        path: list[int] = []
        for offset, _, count, begin, end in plan.segments.tolist():
            if begin <= query < end:
                path += pages[offset : offset + count]
        found.append((row, position, path[: position // 16 + 1]))
    return found


def attention(
    q: Tensor,
    slots: tuple[Tensor, Tensor],
    plan: TreePlan,
    scale: float,
    window: int | None = None,
    soft_cap: float | None = None,
    mask: Tensor | None = None,
    sinks: Tensor | None = None,
    slopes: Tensor | None = None,
    chunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    k_slots, v_slots = slots
    kv_heads, group = k_slots.shape[1], q.shape[1] // k_slots.shape[1]
    out, lse = (
        torch.zeros(q.shape, dtype=torch.float64),
        torch.full(q.shape[:2], -torch.inf, dtype=torch.float64),
    )
    for row, position, path in paths(plan):
        first = 0 if window is None else max(0, position - window + 1)
        first = first if chunk is None else max(first, position - position % chunk)
        for head in range(kv_heads):
            positions = [
                p
                for p in range(first, position + 1)
                if path[p // 16] >= 0
                and (mask is None or int(mask[head, row, p // 512]) >> (p // 16 % 32) & 1)
            ]
            seen = [path[p // 16] * 16 + p % 16 for p in positions]
            rows = slice(head * group, (head + 1) * group)
            if not seen:
                lse[row, rows] = -torch.inf if sinks is None else sinks[rows].double()
                continue
            logits = q[row, rows].double() @ k_slots[seen, head].T * scale
            if soft_cap:
                logits = soft_cap * torch.tanh(logits / soft_cap)
            if slopes is not None:
                distances = position - torch.tensor(positions, dtype=torch.float64)
                logits = logits - slopes[rows].double()[:, None] * distances
            if sinks is not None:
                logits = torch.cat([logits, sinks[rows].double()[:, None]], -1)
            out[row, rows] = logits.softmax(-1)[:, : len(seen)] @ v_slots[seen, head]
            lse[row, rows] = logits.logsumexp(-1)
    return out, lse


def scores(q: Tensor, summaries: Tensor, plan: TreePlan, scale: float, columns: int) -> Tensor:
    heads = summaries.shape[1]
    group = q.shape[1] // heads
    out = torch.zeros((heads, q.shape[0], columns), dtype=torch.float64)
    for row, position, path in paths(plan):
        held = [column for column, page in enumerate(path) if page >= 0]
        count = torch.tensor([min(16, position + 1 - 16 * c) for c in held], dtype=torch.float64)
        pages = summaries[[path[c] for c in held]].double().transpose(0, 1)  # [heads, n, S, d]
        rows = q[row].double().view(heads, group, 1, 1, -1)
        if pages.shape[2] == 4:  # means of quarters, of the pairs (c, c + d / 2) that turn the least
            slow = [c for c in range(q.shape[2]) if c % (q.shape[2] // 2) >= q.shape[2] // 4]
            products = (rows[..., slow] * pages[:, None]).sum(4).amax(3)
        else:
            products = (rows * pages[:, None]).amax(3).sum(3)
        logits = scale * products + count.log()
        out[:, row, held] = logits.softmax(-1).mean(1)
    return out
