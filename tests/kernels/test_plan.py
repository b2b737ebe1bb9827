"""The plan of random forests against its promises, and its refusal of bad input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tts_kernels import KVTree, TreePlan, plan
from tts_kernels._core import TILE_PAGES

Int32Array = npt.NDArray[np.int32]


@dataclass
class Forest:
    tables: Int32Array
    lengths: Int32Array
    query_lens: Int32Array
    page_size: int
    query_block: int

    def plan(self) -> TreePlan:
        return plan(
            self.tables,
            self.lengths,
            self.query_lens,
            page_size=self.page_size,
            query_block=self.query_block,
        )

    def path(self, branch: int) -> tuple[int, ...]:
        return tuple(self.tables[branch, : -(-self.lengths[branch] // self.page_size)].tolist())


@st.composite
def forests(draw: st.DrawFn) -> Forest:
    """Roots, forks at any page (the last too, where siblings share it but not its length), repeats, holes."""
    page_size = draw(st.sampled_from([1, 2, 16]))
    paths: list[list[int]] = []
    pages = ((17 + 101 * i) % 1009 for i in range(1009))  # distinct, and in no order
    for _ in range(draw(st.integers(0, 14))):
        parent: list[int] = draw(st.sampled_from([[], *paths]))
        shared = parent[: draw(st.integers(0, len(parent)))]
        fresh = draw(st.integers(0 if shared else 1, 5) | st.sampled_from([TILE_PAGES, 2 * TILE_PAGES + 1]))
        paths.append(shared + [next(pages) for _ in range(fresh)])
    paths = draw(st.permutations(paths))
    lengths = [page_size * len(path) - draw(st.integers(0, page_size - 1)) for path in paths]
    query_lens = [
        min(draw(st.sampled_from([0, 1, 1, 1, 2, length // 2, length])), length) for length in lengths
    ]
    # The same columns of several branches, some of them in a page that all share.
    evicted = draw(st.lists(st.integers(0, 40), max_size=4))
    for path, length, queries in zip(paths, lengths, query_lens, strict=True):
        if draw(st.booleans()):
            for column in evicted:
                if column < (length - max(queries, 1)) // page_size:
                    path[column] = -1
    # What lies behind a branch's last page is never read: poison it.
    width = max(map(len, paths), default=0) + draw(st.integers(0, 2))
    tables = np.array([path + [-7] * (width - len(path)) for path in paths], np.int32).reshape(
        len(paths), width
    )
    return Forest(
        tables,
        np.array(lengths, np.int32),
        np.array(query_lens, np.int32),
        page_size,
        draw(st.sampled_from([1, 3, 32, 10**6])),
    )


def check(forest: Forest) -> None:
    tree_plan = forest.plan()
    for name in ("query_order", "query_position", "pages", "segments", "blocks"):
        tensor = getattr(tree_plan, name)
        assert tensor.dtype == torch.int32
        assert tensor.is_contiguous()
    order, position = tree_plan.query_order.tolist(), tree_plan.query_position.tolist()
    segments, blocks = tree_plan.segments.tolist(), tree_plan.blocks.tolist()

    # Rows of q are branch-major; a branch's queries are its last tokens.
    branch_of_row = np.repeat(np.arange(len(forest.lengths)), forest.query_lens)
    position_of_row = [
        int(length - count + i)
        for length, count in zip(forest.lengths, forest.query_lens, strict=True)
        for i in range(count)
    ]
    assert sorted(order) == list(range(len(branch_of_row)))
    assert position == [position_of_row[row] for row in order]
    assert tree_plan.num_queries == len(order)
    assert tree_plan.page_size == forest.page_size
    branches = [int(branch_of_row[row]) for row in order]
    paths = [forest.path(branch) for branch in branches]

    # Depth-first: the queries below any run of pages are contiguous, a branch's own in order of position.
    below: dict[tuple[int, ...], list[int]] = {}
    for query, path in enumerate(paths):
        for end in range(1, len(path) + 1):
            below.setdefault(path[:end], []).append(query)
    assert all(queries == list(range(queries[0], queries[-1] + 1)) for queries in below.values())
    for branch in set(branches):
        rows = [row for row, other in zip(order, branches, strict=True) if other == branch]
        assert rows == list(range(rows[0], rows[0] + len(rows)))
    assert tree_plan.unique_pages == sum(prefix[-1] >= 0 for prefix in below)
    with_queries = np.flatnonzero(forest.query_lens)
    assert tree_plan.logical_pages == sum(
        page >= 0 for branch in with_queries.tolist() for page in forest.path(branch)
    )

    # Blocks cover the queries in order, and own the segments in order.
    assert [begin for begin, *_ in blocks] == [0, *(end for _, end, *_ in blocks)][: len(blocks)]
    assert [begin for *_, begin, _ in blocks] == [0, *(end for *_, end in blocks)][: len(blocks)]
    assert [end - begin for begin, end, *_ in blocks[:-1]] == [forest.query_block] * (len(blocks) - 1)
    assert (blocks[-1][1], blocks[-1][3]) == (len(order), len(segments)) if order else not segments

    covered: list[list[int]] = [[] for _ in order]  # by query: the columns that its segments list
    visits = 0
    for query_begin, query_end, segment_begin, segment_end in blocks:
        assert 0 < query_end - query_begin <= forest.query_block
        keys = []
        for offset, first, count, begin, end in segments[segment_begin:segment_end]:
            assert query_begin <= begin < end <= query_end
            assert count > 0
            assert first // TILE_PAGES == (first + count - 1) // TILE_PAGES
            keys.append((first // TILE_PAGES, begin, first, end))
            pages = tuple(tree_plan.pages[offset : offset + count].tolist())
            assert len(pages) == count
            for query in range(begin, end):
                assert paths[query][first : first + count] == pages
                covered[query] += range(first, first + count)
            assert first + count - 1 <= max(position[begin:end]) // forest.page_size
            visits += count
        assert keys == sorted(keys)
        # No two segments could have been one.
        assert len({(tile, begin, end) for tile, begin, _, end in keys}) == len(keys)

    for query, columns in enumerate(covered):
        last = position[query] // forest.page_size
        assert columns == list(range(len(columns)))
        assert last < len(columns) <= len(paths[query])

    # Sharing is found in full: a block visits each page that any of its queries sees once.
    assert visits == sum(
        len(
            {paths[q][: c + 1] for q in range(begin, end) for c in range(position[q] // forest.page_size + 1)}
        )
        for begin, end, *_ in blocks
    )


@settings(max_examples=150)
@given(forests())
def test_random_forest(forest: Forest) -> None:
    check(forest)


@settings(max_examples=50)
@given(st.integers(1, 40), st.integers(1, 80), st.integers(1, 50))
def test_no_sharing_keeps_the_order_of_the_arguments(branches: int, length: int, query_block: int) -> None:
    tables = np.random.default_rng(0).permutation(branches * 5).reshape(branches, 5).astype(np.int32)
    one = np.ones(branches, np.int32)
    forest = Forest(tables, length * one, one, 16, query_block)
    check(forest)
    tree_plan = forest.plan()
    assert tree_plan.query_order.tolist() == list(range(branches))
    assert tree_plan.unique_pages == tree_plan.logical_pages == len(tree_plan.pages)


def test_branch_cut_inside_a_page_that_a_longer_sibling_holds() -> None:
    tree = KVTree(8, 16)
    root = tree.create()
    tree.append([root], [range(30)])
    [short] = tree.fork(root, at=18)
    tables, lengths = tree.block_tables([root, short])
    assert lengths.tolist() == [30, 18]
    tree_plan = plan(tables, lengths)
    assert tree_plan.segments.tolist() == [[0, 0, 2, 0, 2]]
    assert tree_plan.query_position.tolist() == [29, 17]


def test_one_shared_prefix_is_one_segment_a_tile_and_block() -> None:
    tree = KVTree(1000)
    root = tree.create()
    tree.append([root], [range(2048)])
    branches = tree.fork(root, 64)
    tree.append(branches, [[1] * 64] * 64)
    tree_plan = plan(*tree.block_tables(branches))
    shared = tree_plan.segments[tree_plan.segments[:, 4] - tree_plan.segments[:, 3] > 1]
    assert shared[:, 1:].tolist() == [[t * 16, 16, b, b + 32] for b in (0, 32) for t in range(8)]
    assert tree_plan.unique_pages == tree.stats().resident_pages == 128 + 64 * 4
    assert tree_plan.logical_pages == 64 * (128 + 4)


def test_branches_with_the_same_holes_share_what_lies_behind() -> None:
    tree = KVTree(100, 16)
    root = tree.create()
    tree.append([root], [range(96)])
    branches = tree.fork(root, 3)
    tree.append(branches, [[1], [2], [3]])
    assert tree.evict([root, *branches], [1, 3]) == 2
    tree.evict(branches[2:], [4])
    tree_plan = plan(*tree.block_tables(branches))
    assert tree_plan.segments.tolist() == [
        [0, 0, 4, 0, 3],
        [4, 4, 2, 0, 2],
        [6, 6, 1, 0, 1],
        [7, 6, 1, 1, 2],
        [8, 4, 3, 2, 3],
    ]
    assert (tree_plan.pages == -1).nonzero()[:, 0].tolist() == [1, 3, 8]
    assert tree_plan.unique_pages == 2 + 2 + 1 + 1 + 2
    assert tree_plan.logical_pages == 5 + 5 + 4


def test_deep_comb_and_wide_forest() -> None:
    depth = 400
    comb = np.arange(depth * depth, dtype=np.int32).reshape(depth, depth)
    for row in range(1, depth):
        comb[row, :row] = comb[row - 1, :row]
    tree_plan = plan(comb, np.full(depth, depth * 16, np.int32), query_block=depth)
    assert tree_plan.unique_pages == depth + depth * (depth - 1) // 2
    assert len(tree_plan.pages) == tree_plan.unique_pages
    wide = np.arange(5000, dtype=np.int32).reshape(-1, 1)
    assert len(plan(wide, np.ones(5000, np.int32)).segments) == 5000


def test_tensors_arrays_and_views_are_alike() -> None:
    wide = torch.arange(24, dtype=torch.int32).reshape(4, 6)
    view, lengths = wide[:, 1:4], torch.tensor([40, 3, 48, 17], dtype=torch.int32)
    from_view, from_copy = plan(view, lengths), plan(view.numpy().copy(), lengths.numpy())
    assert from_view.pages.tolist() == from_copy.pages.tolist()
    assert from_view.pages.tolist() == [1, 2, 3, 7, 13, 14, 15, 19, 20]


def test_nothing_to_do() -> None:
    for tables, lengths, query_lens in (((0, 0), 0, None), ((0, 4), 0, None), ((3, 2), 3, (0, 0, 0))):
        count = tables[0]
        queries = None if query_lens is None else np.array(query_lens, np.int32)
        tree_plan = plan(np.zeros(tables, np.int32), np.full(count, lengths, np.int32), queries)
        assert tree_plan.num_queries == tree_plan.unique_pages == tree_plan.logical_pages == 0
        assert tree_plan.segments.shape == (0, 5)
        assert tree_plan.blocks.shape == (0, 4)


GOOD: dict[str, Any] = {
    "block_tables": np.array([[0, 1], [-1, 2]], np.int32),
    "lengths": np.array([20, 32], np.int32),
    "query_lens": np.array([1, 2], np.int32),
    "page_size": 16,
    "query_block": 32,
}

BAD_INPUT: list[tuple[str, Any, type[Exception], str]] = [
    (
        "block_tables",
        np.zeros((2, 2), np.int64),
        TypeError,
        "block_tables: got dtype int64, expected an int32",
    ),
    ("block_tables", torch.zeros(2, 2), TypeError, "block_tables: got dtype float32"),
    (
        "block_tables",
        torch.zeros(2, 2, dtype=torch.int32, device="meta"),
        TypeError,
        "block_tables: .* on meta",
    ),
    ("block_tables", [[0, 1], [0, 2]], TypeError, "block_tables: got list"),
    ("block_tables", np.zeros(4, np.int32), ValueError, "block_tables: got 1 dimensions, expected 2"),
    ("block_tables", np.int32(3), TypeError, "block_tables: got int32"),
    ("block_tables", np.array([[0, 1], [0, -1]], np.int32), ValueError, r"block_tables\[1, 1\]: got -1"),
    ("block_tables", np.array([[0, 1], [-2, 1]], np.int32), ValueError, r"block_tables\[1, 0\]: got -2"),
    (  # a query there
        "query_lens",
        np.array([1, 20], np.int32),
        ValueError,
        r"block_tables\[1, 0\]: got -1, .* the first 0 of them may be -1, an evicted page",
    ),
    ("block_tables", np.zeros((2, 0), np.int32), ValueError, r"lengths\[0\]: got 20, .* 0 pages"),
    ("lengths", np.array([20, 33], np.int32), ValueError, r"lengths\[1\]: got 33, .*length <= 32.*wider"),
    ("lengths", np.array([-1, 32], np.int32), ValueError, r"lengths\[0\]: got -1"),
    ("lengths", np.array([20], np.int32), ValueError, r"lengths: got \(1,\), expected \(2,\)"),
    ("lengths", np.zeros((2, 1), np.int32), ValueError, r"lengths: got \(2, 1\), expected \(2,\)"),
    ("lengths", None, TypeError, "lengths: got NoneType"),
    (
        "lengths",
        np.array([0, 32], np.int32),
        ValueError,
        r"query_lens\[0\]: got 1, expected 0 <= query_lens <= 0",
    ),
    (
        "query_lens",
        np.array([1, 33], np.int32),
        ValueError,
        r"query_lens\[1\]: got 33, .*<= 32; lengths count",
    ),
    ("query_lens", np.array([-1, 2], np.int32), ValueError, r"query_lens\[0\]: got -1"),
    ("query_lens", np.array([1, 2, 3], np.int32), ValueError, r"query_lens: got \(3,\)"),
    ("query_lens", np.array([1.0, 2.0]), TypeError, "query_lens: got dtype float64"),
    ("page_size", 0, ValueError, "page_size: got 0, expected at least 1"),
    ("page_size", 2**40, ValueError, "page_size: got 1099511627776"),
    ("page_size", 16.0, TypeError, "page_size: got 16.0"),
    ("page_size", True, TypeError, "page_size: got True"),
    ("query_block", 0, ValueError, "query_block: got 0, expected at least 1"),
    ("query_block", "32", TypeError, "query_block: got '32'"),
]


@pytest.mark.parametrize(("argument", "value", "error", "message"), BAD_INPUT)
def test_bad_input_names_the_argument(
    argument: str, value: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        plan(**{**GOOD, argument: value})


def test_plans_of_successive_steps_have_few_lengths() -> None:
    """Checks of arguments remember forms, of which the length of the buffer is a part."""
    tables = np.arange(8 * 40, dtype=np.int32).reshape(8, 40)
    made = [plan(tables, np.full(8, length, np.int32)) for length in range(200, 600)]
    assert len({one.pages.numel() for one in made}) > 20
    assert len({one.buffer.numel() for one in made}) <= 8
    for one in made:
        ints = one.buffer.numel()
        padding = ints - (8 + 2 * 8 + one.pages.numel() + one.segments.numel() + one.blocks.numel() + 3 * 8)
        assert 0 <= padding <= ints / 4
        assert padding == one.buffer[7]
        assert not one.buffer[ints - padding :].any()
