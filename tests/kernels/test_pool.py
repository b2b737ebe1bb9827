"""KVPool: sizes, budgets, and that branches of a KVTree keep their own keys and values."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tts_kernels import KVPool, KVTree


def test_budget_buys_whole_pages() -> None:
    pool = KVPool(num_layers=3, num_kv_heads=2, head_dim=64, budget_bytes=1_000_000, dtype=torch.bfloat16)
    assert pool.page_bytes == 3 * 2 * 2 * 16 * 64 * 2
    assert pool.num_pages == 1_000_000 // pool.page_bytes
    assert pool.k_pages.nbytes + pool.v_pages.nbytes == pool.num_pages * pool.page_bytes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layer_is_a_view(dtype: torch.dtype) -> None:
    pool = KVPool(num_layers=2, num_kv_heads=1, head_dim=32, num_pages=4, dtype=dtype)
    k, v = pool.layer(1)
    assert k.data_ptr() == pool.k_pages[1].data_ptr()
    assert v.data_ptr() == pool.v_pages[1].data_ptr()


def test_forked_branches_diverge_inside_a_page() -> None:
    pool = KVPool(num_layers=2, num_kv_heads=2, head_dim=32, num_pages=16)
    tree = KVTree(16)
    tokens: dict[int, list[int]] = {}

    def rows(values: list[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float32)[:, None, None].repeat(1, 2, 32)

    def append(branches: list[int], new: list[list[int]]) -> None:
        done = tree.append(branches, new)
        pool.copy(torch.from_numpy(done.copies))
        flat = [token for values in new for token in values]
        for layer in range(2):
            pool.append(layer, rows(flat), -rows(flat), torch.from_numpy(done.slots))
        for branch, values in zip(branches, new, strict=True):
            tokens[branch] = tokens.get(branch, []) + values

    root = tree.create()
    append([root], [list(range(20))])
    children = tree.fork(root, 3)
    for child in children:
        tokens[child] = list(tokens[root])
    append(children, [[100], [200, 201], [300] * 15])
    append([root], [[400]])
    tables, lengths = tree.block_tables([root, *children])
    for branch, table, length in zip([root, *children], tables, lengths, strict=True):
        for layer in range(2):
            k, v = pool.gather(layer, torch.from_numpy(table), int(length))
            assert torch.equal(k, rows(tokens[branch]))
            assert torch.equal(v, -rows(tokens[branch]))


@pytest.mark.parametrize("layout", ["HND", "NHD"])
def test_plain_layouts_are_views_of_their_memory(layout: str) -> None:
    pool = KVPool(
        num_layers=2,
        num_kv_heads=3,
        head_dim=24,
        budget_bytes=100_000,
        dtype=torch.float16,
        page_size=5,
        layout=layout,
    )
    assert pool.page_bytes == 2 * 2 * 3 * 5 * 24 * 2
    assert pool.k_pages.shape == pool.v_pages.shape == (2, pool.num_pages, 3, 5, 24)
    token, head = (24, 5 * 24) if layout == "HND" else (3 * 24, 24)
    assert pool.k_pages.stride() == (pool.num_pages * 360, 360, head, token, 1)
    assert pool.layer(1)[1].data_ptr() == pool.v_pages[1].data_ptr()


@pytest.mark.parametrize("layout", ["packed", "HND", "NHD"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
@pytest.mark.parametrize("summaries", [None, "mean", "minmax"])
def test_pages_as_bytes(layout: str, dtype: torch.dtype, summaries: str | None) -> None:
    """What goes from some pages of a pool to others of another one is read there as here."""
    shape: dict[str, Any] = {"num_layers": 3, "num_kv_heads": 2, "head_dim": 64, "summaries": summaries}
    source, target = (KVPool(num_pages=6, dtype=dtype, layout=layout, **shape) for _ in range(2))
    for pool in (source, target):
        for part in (pool.k_pages, pool.v_pages, pool.summaries, pool.scales):
            if part is not None:
                part.copy_(torch.randint(-100, 100, part.shape))
    before = {name: getattr(target, name).clone() for name in _parts(target)}
    rows = source.read_pages(torch.tensor([4, 0, 2]))
    assert rows.shape == (3, source.page_bytes)
    target.write_pages(torch.tensor([1, 3, 5], dtype=torch.int32), rows)
    for name in _parts(target):
        changed, kept = getattr(target, name), before[name]
        assert torch.equal(changed[:, [1, 3, 5]], getattr(source, name)[:, [4, 0, 2]])
        assert torch.equal(changed[:, [0, 2, 4]], kept[:, [0, 2, 4]])
    with pytest.raises(ValueError, match="pages: got 0 to 6, expected 0 to 5"):
        source.read_pages(torch.tensor([0, 6]))
    with pytest.raises(TypeError, match=r"pages: got torch\.float32"):
        source.read_pages(torch.tensor([0.0]))
    with pytest.raises(ValueError, match=rf"rows: got torch.uint8 \[3, {source.page_bytes}\], expected"):
        target.write_pages(torch.tensor([1, 2]), rows)


def _parts(pool: KVPool) -> list[str]:
    return [name for name in ("k_pages", "v_pages", "summaries", "scales") if getattr(pool, name) is not None]


GOOD: dict[str, Any] = {"num_layers": 1, "num_kv_heads": 1, "head_dim": 64, "num_pages": 4}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"num_layers": 0}, ValueError, "num_layers: got 0"),
        ({"num_layers": "1"}, TypeError, "num_layers: got '1', expected an int"),
        ({"head_dim": 64.0}, TypeError, r"head_dim: got 64\.0, expected an int"),
        ({"num_pages": 4.5}, TypeError, r"num_pages: got 4\.5, expected an int"),
        ({"num_pages": None, "budget_bytes": 1e9}, TypeError, "budget_bytes: got 1000000000.0"),
        ({"num_pages": 2**27 - 1, "num_layers": 10**6}, MemoryError, "num_pages: got 134217727, .*bytes"),
        ({"num_kv_heads": -1}, ValueError, "num_kv_heads: got -1"),
        ({"head_dim": 24}, ValueError, "head_dim: got 24"),
        ({"head_dim": 40}, ValueError, "head_dim: got 40"),
        ({"head_dim": 272}, ValueError, "head_dim: got 272"),
        ({"dtype": torch.float16}, TypeError, r"dtype: got torch\.float16"),
        ({"page_size": 32}, ValueError, "page_size: got 32"),
        ({"page_size": 0, "layout": "HND"}, ValueError, "page_size: got 0"),
        ({"page_size": 8, "layout": "HND", "num_pages": 2**28}, ValueError, "num_pages: got 268435456"),
        ({"head_dim": 12, "layout": "HND"}, ValueError, "head_dim: got 12, expected a multiple of 8"),
        ({"dtype": torch.float64, "layout": "NHD"}, TypeError, r"dtype: got torch\.float64"),
        ({"layout": "hnd"}, ValueError, "layout: got 'hnd', expected one of"),
        ({"device": "meta"}, ValueError, "device: got 'meta', expected cpu or cuda"),
        ({"device": "gpu"}, ValueError, "device: got 'gpu'"),
        ({"device": "cuda:99"}, ValueError, "device: got 'cuda:99', but torch finds"),
        ({"num_pages": 0}, ValueError, "num_pages: got 0"),
        ({"num_pages": 2**27}, ValueError, "num_pages: got 134217728"),
        ({"num_pages": None}, ValueError, "exactly one"),
        ({"budget_bytes": 10**6}, ValueError, "exactly one"),
        ({"num_pages": None, "budget_bytes": 8191}, ValueError, "at least a page of 8192 bytes"),
    ],
)
def test_bad_sizes_are_refused(change: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        KVPool(**(GOOD | change))
