"""Summaries of pages: always those of the page as it is, whoever wrote it, and copied with it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tts_kernels import KVPool, KVTree, append_kv, copy_pages, reference

PAGE = 16


def make_pool(kind: str | None, dtype: torch.dtype = torch.float32, **options: object) -> KVPool:
    sizes = {"num_layers": 2, "num_kv_heads": 2, "head_dim": 32, "num_pages": 12}
    return KVPool(**(sizes | {"dtype": dtype, "summaries": kind} | options))  # type: ignore[arg-type]


def check(pool: KVPool, tree: KVTree, branch: int, kind: str) -> None:
    """The summaries of the branch's pages are those of the keys in them."""
    tables, lengths = tree.block_tables([branch])
    for column, page in enumerate(tables[0].tolist()):
        if page < 0:
            continue
        count = min(PAGE, int(lengths[0]) - column * PAGE)
        for layer in range(pool.num_layers):
            k, _ = pool.gather(layer, torch.tensor([page], dtype=torch.int32), count)
            slots = torch.zeros((PAGE, *k.shape[1:]))
            slots[:count] = k.float()
            wanted = reference.page_summaries(slots, torch.tensor([count]), kind)[0].to(pool.dtype)
            # float32 sums of 16 keys in another order; a bfloat16 is rounded once, perhaps to the other
            # neighbour
            tolerance = 2**-7 if pool.dtype == torch.bfloat16 else 1e-6
            found = pool.layer_summaries(layer)[page]
            torch.testing.assert_close(found, wanted, rtol=tolerance, atol=1e-6)


def cut(tree: KVTree, branch: int, data: st.DataObject) -> int:
    """A length to cut the branch at: not in the page that may be evicted."""
    length = tree.length(branch)
    return data.draw(st.integers(0, length).filter(lambda n: not PAGE < n <= 2 * PAGE))


@pytest.mark.parametrize("kind", ["mean", "minmax", "quarters"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@settings(max_examples=25)
@given(data=st.data())
def test_summaries_follow_the_pages(kind: str, dtype: torch.dtype, data: st.DataObject) -> None:
    """After an append the branch's summaries are those of its keys, whatever was forked, cut, released or
    evicted before, and whoever had its pages."""
    pool = make_pool(kind, dtype, num_pages=60)
    assert pool.summaries is not None
    pool.summaries.fill_(torch.nan)
    tree = KVTree(pool.num_pages)
    branches = [tree.create()]
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    for _ in range(data.draw(st.integers(1, 9))):
        branch = data.draw(st.sampled_from(branches))
        length = tree.length(branch)
        action = data.draw(st.sampled_from(["append", "append", "fork", "truncate", "release", "evict"]))
        if action == "release" and len(branches) > 1:
            branches.remove(branch)
            tree.release(branch)
        elif action == "evict" and length > 2 * PAGE and tree.block_tables([branch])[0][0, 1] >= 0:
            tree.evict([branch], [1])
        elif action == "fork":
            branches += tree.fork(branch, 1, at=cut(tree, branch, data))
        elif action == "truncate":
            tree.truncate(branch, cut(tree, branch, data))
        elif action == "append":
            count = data.draw(st.integers(1, 40))
            new = tree.append([branch], [[0] * count])
            pool.copy(torch.from_numpy(new.copies))
            for layer in range(pool.num_layers):
                k, v = torch.randn((2, count, 2, 32), generator=generator).to(dtype)
                pool.append(layer, k, v, torch.from_numpy(new.slots))
            check(pool, tree, branch, kind)


@pytest.mark.parametrize("kind", ["minmax", "quarters"])
def test_a_page_copied_on_write_keeps_the_source_s_summary(kind: str) -> None:
    pool, tree = make_pool(kind), KVTree(12)
    root = tree.create()

    def append(branch: int, count: int) -> None:
        new = tree.append([branch], [[1] * count])
        pool.copy(torch.from_numpy(new.copies))
        for layer in range(2):
            pool.append(layer, *torch.randn((2, count, 2, 32)), torch.from_numpy(new.slots))

    append(root, 24)
    (child,) = tree.fork(root, 1)
    append(child, 3)
    check(pool, tree, root, kind)
    check(pool, tree, child, kind)


def test_quarters_of_known_keys() -> None:
    """Six tokens, then a seventh: token t has t + 1 in every channel, and c / 64 of its own in channel c."""
    pool = make_pool("quarters")
    keys = (torch.arange(1.0, 8)[:, None] + torch.arange(32) / 64).view(7, 1, 32).expand(-1, 2, -1)
    slow = torch.cat([torch.arange(8, 16), torch.arange(24, 32)]) / 64
    for tokens, second in ((range(6), 5.5), (range(6, 7), 6.0)):
        k = keys[tokens.start : tokens.stop].contiguous()
        pool.append(1, k, k, torch.tensor(list(tokens), dtype=torch.int32))
        expected = torch.stack([2.5 + slow, second + slow, second + slow, second + slow])
        assert torch.equal(pool.layer_summaries(1)[0], expected.expand(2, -1, -1))


def test_chunks_and_single_tokens_give_the_same_bits() -> None:
    keys = torch.randn((40, 2, 32)).bfloat16()
    pools = [make_pool("quarters", torch.bfloat16) for _ in range(2)]
    for pool, size in zip(pools, (40, 1), strict=True):
        for slots in torch.arange(40, dtype=torch.int32).split(size):
            k = keys[slots.long()]
            pool.append(0, k, k, slots)
    ours, theirs = (pool.layer_summaries(0)[:3] for pool in pools)
    assert torch.equal(ours, theirs)


def test_memory_is_reported() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        plain = make_pool(None, dtype).page_bytes
        assert make_pool("mean", dtype).page_bytes == plain * 33 // 32
        for kind in ("minmax", "quarters"):
            pool = make_pool(kind, dtype)
            assert pool.page_bytes == plain * 17 // 16
            assert pool.summaries is not None
            assert pool.summaries.nbytes == plain // 16 * pool.num_pages


@pytest.mark.parametrize(
    "shape", [(12, 2, 3, 32), (12, 2, 4, 32), (11, 2, 1, 32), (12, 1, 1, 32), (12, 2, 1, 64), (12, 2, 32)]
)
def test_summaries_of_another_pool_are_refused(shape: tuple[int, ...]) -> None:
    pool = make_pool("mean")
    k_pages, v_pages = pool.layer(0)
    before = k_pages.clone()
    k = torch.randn((1, 2, 32))
    with pytest.raises(ValueError, match=r"summaries: got (shape|S = )"):
        append_kv(k, k, k_pages, v_pages, torch.zeros(1, dtype=torch.int32), summaries=torch.zeros(shape))
    assert torch.equal(k_pages.nan_to_num(), before.nan_to_num())


def test_wrong_kinds_are_refused() -> None:
    with pytest.raises(
        ValueError, match="summaries: got 'max', expected one of 'mean', 'minmax', 'quarters' or None"
    ):
        make_pool("max")
    with pytest.raises(
        ValueError, match="summaries: got 'quarters' with layout 'HND', expected packed pages"
    ):
        make_pool("quarters", layout="HND")
    with pytest.raises(ValueError, match="make the pool with summaries"):
        make_pool(None).layer_summaries(0)
    pool = make_pool("mean")
    with pytest.raises(TypeError, match=r"summaries: got torch.bfloat16, expected torch.float32"):
        copy_pages(
            pool.k_pages,
            pool.v_pages,
            torch.zeros((1, 2), dtype=torch.int32),
            summaries=torch.zeros((2, 12, 2, 1, 32), dtype=torch.bfloat16),
        )
