"""append_and_attend: the bits of append_kv and tree_attention, and refused arguments change nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tts_kernels import KVPool, TreePlan, append_kv, plan, tree_attention
from tts_kernels.ops.paged_attention import append_and_attend

HEADS, KV_HEADS, DIM = 6, 2, 64
TABLES = np.array([[4, 1, 2, 7], [4, 1, 3, 0], [5, 0, 0, 0]], np.int32)
LENGTHS, QUERIES = np.array([50, 40, 9], np.int32), np.array([3, 1, 9], np.int32)
SLOTS = torch.tensor([
    TABLES[row, p // 16] * 16 + p % 16
    for row, (n, m) in enumerate(zip(LENGTHS, QUERIES, strict=True))
    for p in range(n - m, n)
], dtype=torch.int32)  # fmt: skip


def pool_of(dtype: torch.dtype) -> KVPool:
    torch.manual_seed(1)
    pool = KVPool(num_layers=1, num_kv_heads=KV_HEADS, head_dim=DIM, num_pages=8, dtype=dtype)
    pool.k_pages.normal_()
    pool.v_pages.normal_()
    return pool


def rows_of(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Views of one projection, as models have them."""
    torch.manual_seed(2)
    qkv = torch.randn(len(SLOTS), HEADS + 2 * KV_HEADS, DIM).to(dtype)
    q, k, v = qkv.split([HEADS, KV_HEADS, KV_HEADS], dim=1)
    return q, k, v


@pytest.mark.parametrize("appended", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("window", "cap"), [(None, None), (20, None), (None, 3.0)])
def test_bits_are_those_of_the_operators(
    dtype: torch.dtype, window: int | None, cap: float | None, appended: bool
) -> None:
    made, (q, k, v) = plan(TABLES, LENGTHS, QUERIES), rows_of(dtype)
    one, other = pool_of(dtype), pool_of(dtype)
    options: dict[str, Any] = {"scale": 0.2, "window": window, "logits_soft_cap": cap}
    if appended:
        append_kv(k, v, *one.layer(0), SLOTS)
    expected, _ = tree_attention(q, *one.layer(0), made, **options)
    out = torch.full_like(expected, torch.nan)
    with torch.inference_mode():
        append_and_attend(q, *other.layer(0), made, out, new=(k, v, SLOTS) if appended else None, **options)
    assert torch.equal(out, expected)
    assert torch.equal(one.k_pages, other.k_pages)
    assert torch.equal(one.v_pages, other.v_pages)


def changed(made: TreePlan, index: int, number: int) -> TreePlan:
    buffer = made.buffer.clone()
    buffer[index] = number
    return TreePlan(buffer, *(getattr(made, name) for name in list(vars(made))[1:]))


def test_a_failed_call_changes_nothing() -> None:
    made, (q, k, v), pool = plan(TABLES, LENGTHS, QUERIES), rows_of(torch.float32), pool_of(torch.float32)
    before = pool.k_pages.clone(), pool.v_pages.clone()
    out = torch.full(q.shape, 7.0)
    wide = torch.zeros(len(q), 2 * HEADS, DIM)
    given: dict[str, Any] = {"q": q, "plan": made, "out": out, "new": (k, v, SLOTS), "scale": 0.2}
    first_page = 8 + 2 * len(SLOTS)
    for change, message in [
        ({"new": (k, v, SLOTS + 8 * 16)}, r"slots\[0\]: got"),
        ({"new": (k, v, SLOTS[1:])}, "slots: got shape"),
        ({"new": (k, None, SLOTS)}, "v: got None"),
        ({"plan": changed(made, first_page, 8)}, r"pages\[0\]: got 8, expected 0 <= page < 8"),
        ({"plan": changed(made, 8, 1 << 20)}, r"query_order\[0\]: got"),
        ({"plan": None}, "plan: got NoneType, expected a TreePlan"),
        ({"out": q}, "out: got strides .*, expected a contiguous tensor"),
        ({"q": out}, "out: got memory that q shares"),
        ({"out": wide[:, :HEADS]}, "out: got strides"),
        ({"out": out.double()}, "out: got torch.float64"),
        ({"q": q.bfloat16()}, "q: got torch.bfloat16"),
        ({"scale": -1.0}, "scale: got -1.0"),
        ({"window": 0}, "window: got 0"),
        ({"logits_soft_cap": float("nan")}, "logits_soft_cap: got nan"),
    ]:
        with pytest.raises((TypeError, ValueError), match=message):
            append_and_attend(k_pages=pool.layer(0)[0], v_pages=pool.layer(0)[1], **(given | change))
        assert torch.equal(pool.k_pages, before[0])
        assert torch.equal(pool.v_pages, before[1])
        assert out.eq(7).all()
    plain = torch.zeros(8, KV_HEADS, 16, DIM)
    with pytest.raises(ValueError, match="k_pages, v_pages: got plain or 8-bit pages"):
        append_and_attend(k_pages=plain, v_pages=plain.clone(), **given)
