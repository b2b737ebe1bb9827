"""int8 pages: what is appended, copied and gathered is what the specification quantizes, and bad calls change
nothing.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from attention_cases import PAGE, poisoned_pool
from attention_checks import HEAD_DIMS
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tts_kernels import KVPool, KVTree, append_kv, copy_pages, gather_kv, reference

ROW_DTYPES = [torch.float32, torch.bfloat16]


def make_pool(num_pages: int = 8, **sizes: int) -> KVPool:
    return poisoned_pool(torch.Generator().manual_seed(0), num_pages, dtype=torch.int8, **sizes)


def read_bytes(pool: KVPool, layer: int, page: int) -> tuple[Tensor, Tensor]:
    """Bytes [16, heads, d] of K and V of a page, unpacked by the formulas of csrc/cpu/kv_layout.h."""
    k, v = pool.layer(layer)
    return k[page].permute(2, 0, 1), v[page].permute(1, 0, 2)


def ints(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


@settings(max_examples=60)
@given(
    counts=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    heads=st.integers(1, 3),
    head_dim=st.sampled_from(HEAD_DIMS),
    dtype=st.sampled_from(ROW_DTYPES),
    size=st.sampled_from([1e-44, 1e-30, 1.0, 1e30]),
    seed=st.integers(0, 2**31),
)
def test_appends_are_those_of_the_specification(
    counts: list[int], heads: int, head_dim: int, dtype: torch.dtype, size: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    pool = make_pool(kv_heads=heads, head_dim=head_dim)
    stored = [torch.zeros((0, heads, head_dim), dtype=torch.int8) for _ in "kv"]
    scales = [torch.zeros(heads) for _ in "kv"]
    begin = 0
    for count in counts:
        count = min(count, PAGE - begin)
        if count == 0:
            break
        # Tokens of sizes from 0 to 100: some make the scale grow, some do not.
        token_size = torch.randint(0, 3, (2, count, heads, 1), generator=generator) * 50 * size
        kv = (torch.randn((2, count, heads, head_dim), generator=generator) * token_size).to(dtype)
        pool.append(0, *kv, 5 * PAGE + begin + torch.arange(count, dtype=torch.int32))
        begin += count
        for i in range(2):
            stored[i], scales[i] = reference.append_int8(stored[i], scales[i], kv[i])
        for i, actual in enumerate(read_bytes(pool, 0, 5)):
            assert torch.equal(actual[:begin], stored[i])
            assert torch.equal(pool.scales[0, 5, :, i], scales[i])
    assert pool.scales[0, :5].isnan().all()
    assert pool.scales[0, 6:].isnan().all()


def test_token_by_token_and_at_once() -> None:
    """The scales are equal; a value is rounded once more, by half a step, at each growth of its page."""
    torch.manual_seed(0)
    k, v = torch.randn((2, 100, 2, 64)) * torch.rand((2, 100, 2, 1))
    at_once, by_token = make_pool(), make_pool()
    slots = torch.arange(100, dtype=torch.int32)
    at_once.append(0, k, v, slots)
    growths = torch.zeros(8, 2, 2)
    for t in range(100):
        before = by_token.scales[0].clone()
        by_token.append(0, k[t : t + 1], v[t : t + 1], slots[t : t + 1])
        growths += by_token.scales[0] > before
    assert torch.equal(at_once.scales[0, :7], by_token.scales[0, :7])
    assert growths[:7].max() >= 3
    table = torch.arange(7, dtype=torch.int32)
    page = torch.arange(100) // PAGE
    pairs = zip(at_once.gather(0, table, 100), by_token.gather(0, table, 100), (k, v), strict=True)
    for i, (one, other, exact) in enumerate(pairs):
        step = at_once.scales[0, page, :, i, None]
        assert ((one - exact).abs() <= step * 0.5001).all()
        assert ((other - exact).abs() <= step * (0.5001 + 0.5 * growths[page, :, i, None])).all()


def test_a_page_starts_anew_at_offset_0_and_zeros_have_the_scale_1() -> None:
    pool = make_pool()
    large, small = torch.full((1, 2, 64), 100.0), torch.full((1, 2, 64), 0.25)
    pool.append(0, large, large, ints(16))
    pool.append(0, small, 0 * small, ints(16))
    assert torch.equal(pool.scales[0, 1], torch.tensor([[0.25 / 127, 1.0]]).expand(2, 2))
    pool.append(0, small, small, ints(17))
    assert torch.equal(pool.scales[0, 1], torch.full((2, 2), 0.25) / 127)
    k, v = pool.gather(0, ints(1), 2)
    torch.testing.assert_close(k, small.expand(2, 2, 64))
    torch.testing.assert_close(v, torch.cat([0 * small, small]))


def test_slots_in_any_order_and_twice() -> None:
    torch.manual_seed(0)
    slots = ints(40, 3, 33, 0, 3, 32, 40, 1, 2)
    k, v = torch.randn((2, 9, 2, 64))
    k[1] *= 1000  # written over by token 4 in the same call: its size does not count
    pool, ordered = make_pool(), make_pool()
    pool.append(0, k, v, slots)
    kept = torch.tensor([3, 7, 8, 4, 5, 2, 6])
    ordered.append(0, k[kept], v[kept], slots[kept])
    for page in (0, 2):
        assert torch.equal(pool.scales[0, page], ordered.scales[0, page])
        written = slots[slots // PAGE == page].long() % PAGE
        for a, b in zip(read_bytes(pool, 0, page), read_bytes(ordered, 0, page), strict=True):
            assert torch.equal(a[written], b[written])


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_shows_until_the_page_starts_anew(bad: float) -> None:
    pool = make_pool()
    row = torch.ones((1, 2, 64))
    poisoned = row.clone()
    poisoned[0, 1, 7] = bad
    pool.append(0, row, row, ints(0))
    pool.append(0, poisoned, row, ints(1))
    pool.append(0, row, row, ints(2))
    k, v = pool.gather(0, ints(0), 3)
    assert k[:, 1].isnan().all()
    assert k[:, 0].isfinite().all()
    assert v.isfinite().all()
    pool.append(0, row, row, ints(0))
    assert torch.equal(pool.gather(0, ints(0), 1)[0], row)


def test_threads_quantize_alike() -> None:
    k, v = torch.randn((2, 320, 8, 128))
    slots = (torch.randperm(20).int()[:, None] * PAGE + torch.arange(PAGE, dtype=torch.int32)).flatten()
    pools = [make_pool(kv_heads=8, head_dim=128, num_pages=20) for _ in range(2)]
    for threads, pool in enumerate(pools, 1):
        torch.set_num_threads(threads)
        pool.append(0, k, v, slots)
    assert torch.equal(pools[0].k_pages, pools[1].k_pages)
    assert torch.equal(pools[0].v_pages, pools[1].v_pages)
    assert torch.equal(pools[0].scales, pools[1].scales)


@settings(max_examples=40)
@given(copies=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=8))
def test_copies_take_their_scales_along(copies: list[tuple[int, int]]) -> None:
    pool = make_pool(layers=2, kv_heads=3, head_dim=48, num_pages=6)
    pool.scales.copy_(torch.rand(pool.scales.shape))
    expected = [x.clone() for x in (pool.k_pages, pool.v_pages, pool.scales)]
    pool.copy(torch.tensor(copies, dtype=torch.int32).reshape(-1, 2))
    for source, destination in copies:
        for x in expected:
            x[:, destination] = x[:, source].clone()
    assert all(map(torch.equal, (pool.k_pages, pool.v_pages, pool.scales), expected))


def test_a_fork_writes_into_its_own_copy() -> None:
    pool, tree = make_pool(layers=2), KVTree(8)

    def append(branches: list[int], new: list[list[int]]) -> None:
        done = tree.append(branches, new)
        pool.copy(torch.from_numpy(done.copies))
        flat = torch.tensor([float(token) for tokens in new for token in tokens])
        rows = flat[:, None, None].repeat(1, 2, 64)
        for layer in range(2):
            pool.append(layer, rows, -rows, torch.from_numpy(done.slots))

    root = tree.create()
    append([root], [list(range(1, 20))])
    children = tree.fork(root, 2)
    append(children, [[1000], [5]])  # the first one's scale grows
    tables, lengths = tree.block_tables([root, *children])
    for table, length, last in zip(tables, lengths, (19, 1000, 5), strict=True):
        for layer in range(2):
            k, v = pool.gather(layer, torch.from_numpy(table), int(length))
            assert torch.equal(k, -v)
            step = (1000 if last == 1000 else 19) / 127
            assert abs(k[-1, 0, 0].item() - last) <= step / 2
            assert (k[16:19, 0, 0] - torch.arange(17, 20)).abs().max() <= step
    k = pool.gather(0, torch.from_numpy(tables[0]), 16)[0]
    assert (k[:, 1, 5] - torch.arange(1, 17)).abs().max() <= 16 / 127 / 2 + 1e-6


def test_half_the_bytes_of_bfloat16() -> None:
    options = {"num_layers": 3, "num_kv_heads": 2, "head_dim": 64, "budget_bytes": 1_000_000}
    pool, half = KVPool(**options, dtype=torch.int8), KVPool(**options, dtype=torch.bfloat16)
    assert pool.page_bytes == half.page_bytes // 2 + 3 * 2 * 2 * 4
    used = pool.k_pages.nbytes + pool.v_pages.nbytes + pool.scales.nbytes
    assert used == pool.num_pages * pool.page_bytes


@pytest.mark.parametrize("kind", ["mean", "minmax", "quarters"])
def test_summaries_are_of_the_values(kind: str) -> None:
    pool = KVPool(num_layers=1, num_kv_heads=2, head_dim=64, num_pages=3, dtype=torch.int8, summaries=kind)
    k = torch.randn((40, 2, 64))
    pool.append(0, k, k, torch.arange(40, dtype=torch.int32))
    values = torch.zeros((48, 2, 64))
    values[:40] = pool.gather(0, ints(0, 1, 2), 40)[0]
    expected = reference.page_summaries(values, ints(16, 16, 8), kind).bfloat16()
    torch.testing.assert_close(pool.layer_summaries(0), expected, rtol=2**-8, atol=1e-6)


# -- bad arguments

POOL = make_pool(kv_heads=3, head_dim=48, num_pages=6)
K, V = torch.randn((2, 2, 3, 48))
KP, VP = POOL.layer(0)
SCALES = POOL.scales[0]
SLOTS = ints(1, 2)

REFUSED: list[tuple[type[Exception], str, Callable[[], object]]] = [
    (TypeError, "scales: got None", lambda: append_kv(K, V, KP, VP, SLOTS)),
    (TypeError, "scales: got None", lambda: copy_pages(POOL.k_pages, POOL.v_pages, ints(0, 1).view(1, 2))),
    (TypeError, "scales: got None", lambda: gather_kv(KP, VP, ints(0), 1)),
    (TypeError, "scales: got torch.float64", lambda: gather_kv(KP, VP, ints(0), 1, scales=SCALES.double())),
    (ValueError, "scales: got shape", lambda: gather_kv(KP, VP, ints(0), 1, scales=SCALES[:, :2])),
    (ValueError, "scales: got shape", lambda: gather_kv(KP, VP, ints(0), 1, scales=SCALES[1:])),
    (
        ValueError,
        "scales: .*strides",
        lambda: gather_kv(KP, VP, ints(0), 1, scales=SCALES.mT.contiguous().mT),
    ),
    (
        ValueError,
        "scales: got a tensor on meta",
        lambda: append_kv(K, V, KP, VP, SLOTS, scales=SCALES.to("meta")),
    ),
    (TypeError, "scales: got list", lambda: append_kv(K, V, KP, VP, SLOTS, scales=[1.0])),  # type: ignore[arg-type]
    (TypeError, "k: got torch.int8", lambda: append_kv(K.to(torch.int8), V, KP, VP, SLOTS, scales=SCALES)),
    (
        TypeError,
        "v: got torch.bfloat16, expected torch.float32 as k has",
        lambda: POOL.append(0, K, V.bfloat16(), SLOTS),
    ),
    (TypeError, "k: got torch.float64", lambda: POOL.append(0, K.double(), V.double(), SLOTS)),
    (ValueError, r"slots\[1\]: got 96", lambda: POOL.append(0, K, V, ints(1, 96))),
    (ValueError, "layer: got 1", lambda: POOL.layer_scales(1)),
]


@pytest.mark.parametrize(("error", "message", "call"), REFUSED, ids=[message for _, message, _ in REFUSED])
def test_bad_arguments_are_refused_and_nothing_is_written(
    error: type[Exception], message: str, call: Callable[[], object]
) -> None:
    before = POOL.k_pages.clone()
    with pytest.raises(error, match=message):
        call()
    assert torch.equal(POOL.k_pages, before)
    assert POOL.scales.isnan().all()


def test_opcheck() -> None:
    pool, ops, check = make_pool(num_pages=6), torch.ops.tts_kernels, torch.library.opcheck
    pool.scales.nan_to_num_()  # it takes NaN for a difference
    pages, scales = pool.layer(0), {"scales": pool.layer_scales(0)}
    k, v = torch.randn((2, 4, 2, 64))
    check(ops.append_kv.default, (k, v, *pages, torch.arange(4, dtype=torch.int32)), scales)
    copies = ints(0, 1).view(1, 2)
    check(ops.copy_pages.default, (pool.k_pages, pool.v_pages, copies), {"scales": pool.scales})
    check(ops.gather_kv.default, (*pages, ints(0), 4), scales)
