"""append_kv, copy_pages and gather_kv on plain pages, in Triton's interpreter or on a GPU: exact copies."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from paged_cases import far_pages
from torch import Tensor

from tts_kernels import KVPool, append_kv, copy_pages, gather_kv, reference

# page_size, head_dim, num_kv_heads, num_layers, dtype, layout
SHAPES = [
    (1, 64, 3, 1, torch.float32, "NHD"),
    (16, 80, 2, 1, torch.bfloat16, "HND"),
    (16, 72, 5, 2, torch.float16, "NHD"),
    (32, 128, 8, 2, torch.bfloat16, "NHD"),
    (24, 16, 1, 3, torch.float16, "HND"),
    (128, 256, 2, 1, torch.float32, "HND"),
]


def make_pool(device: torch.device, shape: tuple[Any, ...] = (16, 64, 2, 2, torch.float32, "HND")) -> KVPool:
    names = ("page_size", "head_dim", "num_kv_heads", "num_layers", "dtype", "layout")
    pool = KVPool(num_pages=6, device=device, **dict(zip(names, shape, strict=True)))
    pool.k_pages.fill_(torch.nan)
    pool.v_pages.fill_(torch.nan)
    return pool


def slots_of(pages: Tensor) -> Tensor:
    """A layer's pages as [num_slots, heads, d]."""
    return pages.transpose(1, 2).flatten(0, 1).cpu()


def same(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a.cpu().double(), b.cpu().double(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("shape", SHAPES)
def test_append_copy_and_gather(device: torch.device, shape: tuple[Any, ...]) -> None:
    page_size, head_dim, heads, layers, dtype, _ = shape
    pool = make_pool(device, shape)
    last = layers - 1
    expected = [slots_of(pages) for pages in pool.layer(last)]
    tokens = min(4 * page_size, 20)
    slots = torch.randperm(4 * page_size)[:tokens].int()
    # Views into one projection, as a model has them: token stride larger than heads * head_dim.
    qkv = torch.randn((tokens, 3, heads, head_dim)).to(dtype)
    reference.append_kv(qkv[:, 1], qkv[:, 2], *expected, slots)
    on_device = qkv.to(device)
    pool.append(last, on_device[:, 1], on_device[:, 2], slots.to(device))
    assert all(map(same, map(slots_of, pool.layer(last)), expected))
    assert all(t.isnan().all() for t in (pool.k_pages[:last], pool.v_pages[:last]))

    copies = torch.tensor([[0, 5], [2, 4]], dtype=torch.int32)
    before = [pages.clone() for pages in (pool.k_pages, pool.v_pages)]
    pool.copy(copies.to(device))
    for pages, old in zip((pool.k_pages, pool.v_pages), before, strict=True):
        old[:, [5, 4]] = old[:, [0, 2]]
        assert same(pages, old)

    table = torch.tensor([4, 0, 1, -1], dtype=torch.int32)
    slots_now = [slots_of(pages) for pages in pool.layer(last)]
    for length in (0, 1, 2 * page_size + 1, 3 * page_size):
        gathered = pool.gather(last, table.to(device), min(length, 3 * page_size))
        wanted = reference.gather_kv(*slots_now, table, min(length, 3 * page_size), page_size)
        assert all(map(same, gathered, wanted))


def test_indices_outside_the_pool_are_left_out(device: torch.device) -> None:
    """Checking them would wait for the device."""
    pool = make_pool(device)
    k, v = torch.ones((2, 3, 2, 64), device=device)
    pool.append(0, k, v, torch.tensor([-1, 6 * 16, 5], dtype=torch.int32, device=device))
    written = ~pool.k_pages.isnan()
    assert written[0, 0, :, 5].all()
    assert written.sum() == 2 * 64
    pool.copy(torch.tensor([[0, 6], [-1, 1], [0, 3]], dtype=torch.int32, device=device))
    assert (~pool.k_pages.isnan()).sum() == 2 * 2 * 64
    k_out, v_out = pool.gather(0, torch.tensor([6, 0], dtype=torch.int32, device=device), 32)
    for rows in (k_out, v_out):
        assert rows[:16].isnan().all()
        assert (rows[16 + 5] == 1).all()


def test_nothing_to_do(device: torch.device) -> None:
    pool = make_pool(device)
    nothing = torch.zeros((0,), dtype=torch.int32, device=device)
    k = torch.zeros((0, 2, 64), device=device)
    pool.append(0, k, k, nothing)
    pool.copy(nothing.view(0, 2))
    assert pool.gather(0, nothing, 0)[0].shape == (0, 2, 64)
    assert pool.k_pages.isnan().all()


def test_pages_of_an_outside_pool(device: torch.device) -> None:
    """Blocks that hold K and V of each token of a head side by side, all layers in one tensor."""
    both = torch.full((2, 6, 3, 8, 160), torch.nan, dtype=torch.bfloat16, device=device)
    k_pages, v_pages = both[..., :80], both[..., 80:]
    k, v = torch.randn((2, 20, 3, 80)).bfloat16().to(device)
    slots = torch.arange(20, dtype=torch.int32, device=device)
    append_kv(k, v, k_pages[1], v_pages[1], slots)
    copy_pages(k_pages, v_pages, torch.tensor([[0, 5]], dtype=torch.int32, device=device))
    table = torch.tensor([5, 1, 2], dtype=torch.int32, device=device)
    gathered = gather_kv(k_pages[1], v_pages[1], table, 20)
    assert all(map(torch.equal, gathered, (k, v)))
    assert both[0].isnan().all()


def test_offsets_beyond_int32(device: torch.device) -> None:
    k_pages, v_pages = far_pages(device)
    k, v = torch.randn((2, 3, 1, 64)).half().to(device)
    table = torch.tensor([1, 0], dtype=torch.int32, device=device)
    append_kv(k, v, k_pages, v_pages, torch.arange(3, 6, dtype=torch.int32, device=device))
    assert all(map(torch.equal, (k_pages[1, 0], v_pages[1, 0]), (k[:, 0], v[:, 0])))
    assert all(map(torch.equal, gather_kv(k_pages, v_pages, table, 3), (k, v)))
    copy_pages(k_pages[None], v_pages[None], table.view(1, 2))
    assert all(map(torch.equal, (k_pages[0, 0], v_pages[0, 0]), (k[:, 0], v[:, 0])))


def test_opcheck(device: torch.device) -> None:
    pool = make_pool(device)
    pool.k_pages.zero_()
    pool.v_pages.zero_()
    k, v = torch.randn((2, 4, 2, 64), device=device)
    ops = torch.ops.tts_kernels
    slots = torch.arange(4, dtype=torch.int32, device=device)
    torch.library.opcheck(ops.append_kv.default, (k, v, *pool.layer(0), slots))
    copies = torch.tensor([[0, 1]], dtype=torch.int32, device=device)
    torch.library.opcheck(ops.copy_pages.default, (pool.k_pages, pool.v_pages, copies))
    torch.library.opcheck(ops.gather_kv.default, (*pool.layer(0), slots, 20))
