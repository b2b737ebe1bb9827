"""Summaries of plain pages, in Triton's interpreter or on a GPU."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tts_kernels import KVPool, append_kv, copy_pages, reference

PAGES, HEADS = 6, 3


def make_pool(device: torch.device, kind: str, **options: object) -> KVPool:
    sizes = {"num_layers": 2, "num_kv_heads": HEADS, "head_dim": 80, "num_pages": PAGES, "layout": "HND"}
    pool = KVPool(**(sizes | {"device": device, "summaries": kind} | options))  # type: ignore[arg-type]
    for tensor in (pool.k_pages, pool.v_pages, pool.summaries):
        assert tensor is not None
        tensor.fill_(torch.nan)
    return pool


def expected(pool: KVPool, layer: int, filled: list[int], kind: str) -> Tensor:
    slots = pool.layer(layer)[0].transpose(1, 2).flatten(0, 1).cpu().double()
    return reference.page_summaries(slots, torch.tensor(filled), kind, pool.page_size)


def check(pool: KVPool, layer: int, filled: list[int], kind: str) -> None:
    """The interpreter truncates to bfloat16, a GPU rounds; sums are float32."""
    tolerance = {torch.bfloat16: 2**-7, torch.float16: 2**-10, torch.float32: 1e-6}[pool.dtype]
    torch.testing.assert_close(
        pool.layer_summaries(layer).cpu().double(),
        expected(pool, layer, filled, kind),
        rtol=tolerance,
        atol=1e-6,
        equal_nan=True,
    )


@pytest.mark.parametrize("kind", ["mean", "minmax"])
@pytest.mark.parametrize(
    ("page_size", "dtype", "layout"),
    [
        (16, torch.bfloat16, "HND"),
        (16, torch.float32, "NHD"),
        (24, torch.float16, "NHD"),
        (128, torch.bfloat16, "HND"),
        (1, torch.float32, "HND"),
    ],
)
def test_pages_fill_in_any_order_of_tokens(
    device: torch.device, kind: str, page_size: int, dtype: torch.dtype, layout: str
) -> None:
    """Each call covers the slots up to the last that it writes, whichever token of the call has it."""
    pool = make_pool(device, kind, page_size=page_size, dtype=dtype, layout=layout)
    half = -(-page_size // 2)
    first = torch.cat([torch.arange(half), 3 * page_size + torch.arange(page_size)])
    second = torch.cat([torch.arange(half, page_size), 5 * page_size + torch.arange(1)])
    for slots, filled in (
        (first, [half, 0, 0, page_size, 0, 0]),
        (second, [page_size, 0, 0, page_size, 0, 1]),
    ):
        order = torch.randperm(len(slots))
        outside = torch.tensor([-1, PAGES * page_size, -page_size - 1])
        shuffled = torch.cat([slots[order], outside]).int().to(device)
        k, v = torch.randn((2, len(shuffled), HEADS, 80)).to(dtype).to(device)
        pool.append(1, k, v, shuffled)
        check(pool, 1, filled, kind)
    assert pool.layer_summaries(0).isnan().all()


@pytest.mark.parametrize("kind", ["mean", "minmax"])
def test_copies_bring_their_summaries_along(device: torch.device, kind: str) -> None:
    pool = make_pool(device, kind, dtype=torch.bfloat16)
    slots = torch.arange(20, dtype=torch.int32, device=device)
    for layer in range(2):
        k, v = torch.randn((2, 20, HEADS, 80)).bfloat16().to(device)
        pool.append(layer, k, v, slots)
    pool.copy(torch.tensor([[1, 4], [0, 5], [0, PAGES]], dtype=torch.int32, device=device))
    for layer in range(2):
        check(pool, layer, [16, 4, 0, 0, 4, 16], kind)


def test_rolled_back_pages_are_summarized_anew(device: torch.device) -> None:
    """The slots after the last written one hold remains of a truncated branch."""
    pool = make_pool(device, "minmax")
    for tokens in (range(10), range(3, 5)):
        slots = torch.tensor(list(tokens), dtype=torch.int32, device=device)
        pool.append(0, *torch.randn((2, len(slots), HEADS, 80)).to(device), slots)
    check(pool, 0, [5, 0, 0, 0, 0, 0], "minmax")


def test_refused(device: torch.device) -> None:
    pool = make_pool(device, "mean")
    k_pages, v_pages = pool.layer(0)
    k = torch.zeros((1, HEADS, 80), device=device)
    slot = torch.zeros(1, dtype=torch.int32, device=device)
    wrong = torch.zeros((PAGES, HEADS, 3, 80), device=device)
    with pytest.raises(ValueError, match="summaries: got S = 3"):
        append_kv(k, k, k_pages, v_pages, slot, summaries=wrong)
    with pytest.raises(TypeError, match=r"summaries: got torch.bfloat16, expected torch.float32"):
        append_kv(k, k, k_pages, v_pages, slot, summaries=wrong[:, :, :1].bfloat16())
    with pytest.raises(ValueError, match="summaries: got shape"):
        copy_pages(pool.k_pages, pool.v_pages, slot.expand(1, 2).contiguous(), summaries=wrong)
    assert pool.k_pages.isnan().all()
