"""append_kv, copy_pages and gather_kv: exact copies, and refused arguments change nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tts_kernels import KVPool, append_kv, copy_pages, gather_kv, reference

DTYPES = [torch.float32, torch.bfloat16]
PAGES = 6


def make_pool(dtype: torch.dtype, *, layers: int = 2, heads: int = 3, head_dim: int = 48) -> KVPool:
    pool = KVPool(num_layers=layers, num_kv_heads=heads, head_dim=head_dim, num_pages=PAGES, dtype=dtype)
    pool.k_pages.fill_(torch.nan)
    pool.v_pages.fill_(torch.nan)
    return pool


def read_slots(pool: KVPool, layer: int) -> tuple[Tensor, Tensor]:
    """All slots of a layer [num_slots, heads, head_dim], unpacked by the formulas of csrc/cpu/kv_layout.h."""
    k, v = pool.layer(layer)
    if pool.dtype == torch.float32:
        # K [page, head, channel, token], V [page, head, token, channel]
        k, v = k.permute(0, 3, 1, 2), v.permute(0, 2, 1, 3)
    else:
        # K [page, head, channel pair, token, 2], V [page, head, token pair, channel, 2]
        k, v = k.permute(0, 3, 1, 2, 4), v.permute(0, 2, 4, 1, 3)
    shape = (pool.num_pages * pool.page_size, pool.num_kv_heads, pool.head_dim)
    return k.reshape(shape), v.reshape(shape)


def same(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a.double(), b.double(), rtol=0, atol=0, equal_nan=True)


@settings(max_examples=60)
@given(
    dtype=st.sampled_from(DTYPES),
    heads=st.integers(1, 4),
    head_dim=st.sampled_from([32, 48, 64, 80, 128, 256]),
    slots=st.lists(st.integers(0, PAGES * 16 - 1), max_size=60),
    seed=st.integers(0, 2**31),
)
def test_append_writes_its_slots_and_no_other(
    dtype: torch.dtype, heads: int, head_dim: int, slots: list[int], seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    pool = make_pool(dtype, heads=heads, head_dim=head_dim)
    expected = [t.clone() for t in read_slots(pool, 1)]
    # Views into one projection, as a model has them: token stride larger than heads * head_dim.
    qkv = torch.randn((len(slots), 3, heads, head_dim), generator=generator).to(dtype)
    slot_tensor = torch.tensor(slots, dtype=torch.int32)
    pool.append(1, qkv[:, 1], qkv[:, 2], slot_tensor)
    last = {slot: i for i, slot in enumerate(slots)}  # where a slot is named twice the last token wins
    index = torch.tensor(list(last.values()), dtype=torch.long)
    reference.append_kv(qkv[index, 1], qkv[index, 2], *expected, slot_tensor[index])
    assert all(map(same, read_slots(pool, 1), expected))
    assert all(t.isnan().all() for t in read_slots(pool, 0))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("length", [0, 1, 15, 16, 17, 40, 48])
def test_gather_reads_a_branch(dtype: torch.dtype, length: int) -> None:
    pool = make_pool(dtype)
    slots = torch.arange(PAGES * 16, dtype=torch.int32)
    k, v = torch.randn((2, len(slots), 3, 48)).to(dtype)
    pool.append(0, k, v, slots)
    table = torch.tensor([4, 0, 3, -1], dtype=torch.int32)
    actual = pool.gather(0, table, length)
    expected = reference.gather_kv(*read_slots(pool, 0), table, length)
    assert all(map(torch.equal, actual, expected))


@pytest.mark.parametrize("dtype", DTYPES)
def test_large_appends_use_threads_and_agree(dtype: torch.dtype) -> None:
    pool = KVPool(num_layers=1, num_kv_heads=8, head_dim=128, num_pages=20, dtype=dtype)
    k, v = torch.randn((2, 320, 8, 128)).to(dtype)
    table = torch.randperm(20).int()
    pool.append(0, k, v, (table[:, None] * 16 + torch.arange(16, dtype=torch.int32)).flatten())
    assert all(map(torch.equal, pool.gather(0, table, 320), (k, v)))


@settings(max_examples=40)
@given(
    dtype=st.sampled_from(DTYPES),
    copies=st.lists(st.tuples(st.integers(0, PAGES - 1), st.integers(0, PAGES - 1)), max_size=8),
)
def test_copies_run_in_order_in_every_layer(dtype: torch.dtype, copies: list[tuple[int, int]]) -> None:
    pool = make_pool(dtype)
    pool.k_pages.copy_(torch.randn(pool.k_pages.shape))
    pool.v_pages.copy_(torch.randn(pool.v_pages.shape))
    k, v = pool.k_pages.clone(), pool.v_pages.clone()
    pool.copy(torch.tensor(copies, dtype=torch.int32).reshape(-1, 2))
    for source, destination in copies:
        k[:, destination] = k[:, source].clone()
        v[:, destination] = v[:, source].clone()
    assert torch.equal(pool.k_pages, k)
    assert torch.equal(pool.v_pages, v)


@pytest.mark.parametrize("dtype", DTYPES)
def test_pages_may_be_views_with_strides_of_their_own(dtype: torch.dtype) -> None:
    plain = make_pool(dtype, layers=1)
    k, v = plain.layer(0)
    both = torch.zeros((PAGES, 3, 2, k[0, 0].numel()), dtype=dtype)  # K and V of a head side by side
    k_view, v_view = both[:, :, 0].view(k.shape), both[:, :, 1].view(v.shape)
    rows = torch.randn((2, 20, 3, 48)).to(dtype)
    slots = torch.randperm(PAGES * 16)[:20].int()
    append_kv(*rows, k, v, slots)
    append_kv(*rows, k_view, v_view, slots)
    written = ~k.isnan()
    assert torch.equal(k_view[written], k[written])
    table = torch.arange(PAGES, dtype=torch.int32)
    for a, b in zip(gather_kv(k, v, table, 96), gather_kv(k_view, v_view, table, 96), strict=True):
        assert torch.equal(a[slots.long()], b[slots.long()])


def test_opcheck() -> None:
    pool = make_pool(torch.float32)
    k, v = torch.randn((2, 4, 3, 48))
    ops = torch.ops.tts_kernels
    slots = torch.arange(4, dtype=torch.int32)
    torch.library.opcheck(ops.append_kv.default, (k, v, *pool.layer(0), slots))
    copies = torch.tensor([[0, 1]], dtype=torch.int32)
    pool.k_pages.zero_()
    pool.v_pages.zero_()
    torch.library.opcheck(ops.copy_pages.default, (pool.k_pages, pool.v_pages, copies))
    table = torch.arange(2, dtype=torch.int32)
    torch.library.opcheck(ops.gather_kv.default, (*pool.layer(0), table, 20))


def ints(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


POOL = make_pool(torch.float32)
K = V = torch.zeros((2, 3, 48))
META = POOL.v_pages.to("meta")
REFUSED: list[tuple[type[Exception], str, Callable[[], object]]] = [
    (ValueError, "slots.*got 96", lambda: POOL.append(0, K, V, ints(0, 96))),
    (ValueError, "slots.*got -1", lambda: POOL.append(0, K, V, ints(-1, 3))),
    (ValueError, r"slots: got shape \[1\], expected \[T\] = \[2\]", lambda: POOL.append(0, K, V, ints(1))),
    (TypeError, "slots.*int64", lambda: POOL.append(0, K, V, torch.arange(2))),
    (ValueError, "slots.*shape", lambda: POOL.append(0, K, V, ints(1, 2)[None])),
    (TypeError, "k: .*bfloat16", lambda: POOL.append(0, K.bfloat16(), V, ints(1, 2))),
    (ValueError, "v: .*shape", lambda: POOL.append(0, K, V[:, :2], ints(1, 2))),
    (ValueError, "v: .*strides", lambda: POOL.append(0, K, torch.zeros((2, 48, 3)).mT, ints(1, 2))),
    (ValueError, "k: .*meta", lambda: POOL.append(0, K.to("meta"), V, ints(1, 2))),
    (ValueError, "v: .*meta", lambda: POOL.append(0, K, V.to("meta"), ints(1, 2))),
    (ValueError, "slots: .*meta", lambda: POOL.append(0, K, V, ints(1, 2).to("meta"))),
    (TypeError, "slots: got list", lambda: POOL.append(0, K, V, [1, 2])),  # type: ignore[arg-type]
    (ValueError, "k_pages: .*meta", lambda: append_kv(K, V, META[0], POOL.v_pages[0], ints(1, 2))),
    (ValueError, "v_pages: .*meta", lambda: copy_pages(POOL.k_pages, META, ints(0, 1).view(1, 2))),
    (ValueError, "copies: .*meta", lambda: POOL.copy(ints(0, 1).view(1, 2).to("meta"))),
    (ValueError, "v_pages: .*meta", lambda: gather_kv(POOL.k_pages[0], META[0], ints(0), 1)),
    (ValueError, "block_table: .*meta", lambda: POOL.gather(0, ints(0).to("meta"), 1)),
    (ValueError, "layer: got 2", lambda: POOL.append(2, K, V, ints(1, 2))),
    (ValueError, "layer: got -1", lambda: POOL.layer(-1)),
    (ValueError, "copies.*got page 6", lambda: POOL.copy(ints(0, 1, 2, 6).view(2, 2))),
    (ValueError, "copies.*shape", lambda: POOL.copy(ints(0, 1, 2))),
    (ValueError, "copies.*strides", lambda: POOL.copy(ints(0, 1, 2, 3).view(2, 2).T)),
    (ValueError, "length: got 33", lambda: POOL.gather(0, ints(0, 1), 33)),
    (ValueError, "length: got -1", lambda: POOL.gather(0, ints(0, 1), -1)),
    (ValueError, "block_table.*got page -1", lambda: POOL.gather(0, ints(0, -1), 17)),
    (ValueError, "k_pages: got shape", lambda: gather_kv(POOL.v_pages[0], POOL.k_pages[0], ints(0), 1)),
    (TypeError, "k_pages: got torch.float16", lambda: copy_pages(K.half(), V.half(), ints(0, 1).view(1, 2))),
    (ValueError, "k_pages, v_pages: got head_dim = 288", lambda: _gather_head_dim(288)),
    (ValueError, "k_pages, v_pages: got head_dim = 272", lambda: _gather_head_dim(272)),
    (ValueError, "k_pages, v_pages: got head_dim = 40", lambda: _gather_head_dim(40)),
]


def _gather_head_dim(d: int) -> object:
    return gather_kv(torch.zeros((1, 1, d, 16)), torch.zeros((1, 1, 16, d)), ints(0), 1)


@pytest.mark.parametrize(("error", "message", "call"), REFUSED, ids=[message for _, message, _ in REFUSED])
def test_bad_arguments_are_refused_and_nothing_is_written(
    error: type[Exception], message: str, call: Callable[[], object]
) -> None:
    with pytest.raises(error, match=message):
        call()
    assert POOL.k_pages.isnan().all()
    assert POOL.v_pages.isnan().all()
