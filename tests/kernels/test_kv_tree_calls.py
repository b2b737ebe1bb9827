"""KVTree call by call: which pages are shared, freed and used again, and its refusal of bad input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tts_kernels import KVTree, OutOfPagesError

PAGE_SIZE = 4


def tree_of(*lengths: int, num_pages: int = 64) -> tuple[KVTree, list[int]]:
    tree = KVTree(num_pages, PAGE_SIZE)
    branches = [tree.create() for _ in lengths]
    tree.append(branches, [range(length) for length in lengths])
    return tree, branches


def test_last_holder_of_a_tail_writes_in_place() -> None:
    tree, [root] = tree_of(6)
    page = tree.block_tables([root])[0][0, 1]
    children = tree.fork(root, 3)
    tree.release(root)
    done = tree.append(children, [[7], [8], [9]])
    assert done.copies[:, 0].tolist() == [page, page]
    assert done.slots.tolist() == [*(done.copies[:, 1] * PAGE_SIZE + 2), page * PAGE_SIZE + 2]


def test_fork_takes_no_page_and_shares_all() -> None:
    tree, [root] = tree_of(4 * PAGE_SIZE)
    children = tree.fork(root, 500)
    tables, lengths = tree.block_tables([root, *children])
    assert (tables == tables[0]).all()
    assert (lengths == 4 * PAGE_SIZE).all()
    stats = tree.stats()
    assert (stats.resident_pages, stats.unique_tokens) == (4, 4 * PAGE_SIZE)
    assert stats.logical_tokens == 501 * 4 * PAGE_SIZE


def test_freed_pages_are_reused_before_new_ones() -> None:
    tree, [first, second] = tree_of(8, 8)
    pages = tree.block_tables([first])[0][0].tolist()
    tree.release(first)
    done = tree.append([second], [[1] * 8])
    assert sorted({slot // PAGE_SIZE for slot in done.slots.tolist()}) == sorted(pages)
    assert tree.stats().peak_pages == 4


def test_pin_keeps_a_prompt_for_match() -> None:
    tree, [root] = tree_of(10)
    pin = tree.pin(root, at=7)
    tree.release(root)
    assert tree.match(range(100)) == (pin, 7)
    [child] = tree.fork(pin, at=3)
    assert tree.tokens(child).tolist() == [0, 1, 2]
    tree.release(child)
    tree.unpin(pin)
    assert tree.match(range(100)) is None
    assert tree.free_pages == tree.num_pages


def test_an_evicted_page_is_free_when_nobody_needs_it() -> None:
    tree, [root] = tree_of(5 * PAGE_SIZE)
    [child, other] = tree.fork(root, 2)
    pages = tree.block_tables([root])[0][0].tolist()
    assert tree.evict([root, child], [2, 0]) == 0
    assert tree.evict([other], [0]) == 1
    tables, lengths = tree.block_tables([root, child, other])
    _, b, c, d, e = pages
    assert tables.tolist() == [[-1, b, -1, d, e], [-1, b, -1, d, e], [-1, b, c, d, e]]
    assert lengths.tolist() == [5 * PAGE_SIZE] * 3
    assert tree.evict([other], [2]) == 1
    [grandchild] = tree.fork(child)
    tree.append([grandchild], [[7]])
    assert tree.block_tables([grandchild])[0][0, :5].tolist() == [-1, b, -1, d, e]
    assert tree.tokens(grandchild).tolist() == [*[-1] * 4, *range(4, 8), *[-1] * 4, *range(12, 20), 7]
    stats = tree.stats()
    assert (stats.logical_tokens, stats.evicted_tokens, stats.unique_tokens) == (81, 4 * 8, 13)
    assert tree.match(range(20)) is None


def test_a_cut_into_a_hole_says_what_is_possible() -> None:
    tree, [root] = tree_of(20)
    tree.evict([root], [2, 1])
    for length in (5, 8, 12):
        message = f"length: got {length}, but positions 4 to 11 of branch {root} .* at most 4, or 13 to 20"
        with pytest.raises(ValueError, match=message):
            tree.truncate(root, length)
    for length in (20, 13, 4, 0):
        tree.truncate(root, length)
    assert tree.free_pages == tree.num_pages


def test_compacted_pages_serve_their_branch_and_its_forks_alone() -> None:
    tree, [root] = tree_of(6 * PAGE_SIZE)
    pages = tree.block_tables([root])[0][0].tolist()
    tree.compact(root, [1, 2, 3, 4], 1)
    [child] = tree.fork(root)
    assert tree.block_tables([child])[0][0].tolist() == [pages[0], -1, -1, -1, pages[4], pages[5]]
    assert tree.tokens(child).tolist() == [*range(4), *[-1] * 16, *range(20, 24)]
    assert tree.match(range(24)) == (root, 4)
    assert tree.page_holders(root).tolist() == [2, 0, 0, 0, 2, 2]
    for call, name in ((tree.fork, "at"), (tree.pin, "at"), (tree.truncate, "length")):
        with pytest.raises(ValueError, match=f"{name}: got 20, but positions 4 to 19 of .* or 21 to 24"):
            call(root, **{name: 20})
    with pytest.raises(ValueError, match=r"columns: got 0, a page of branch .* that 1 others hold"):
        tree.compact(root, [0, 4], 1)
    tree.release(root)
    tree.compact(child, [0, 4], 1)
    tree.release(child)
    assert tree.free_pages == tree.num_pages
    fresh = tree.create()
    tree.append([fresh], [list(range(24))])  # pages are taken again as new ones
    assert tree.match(range(24)) == (fresh, 24)


def test_a_compaction_names_the_columns_that_it_takes() -> None:
    tree, [root] = tree_of(4 * PAGE_SIZE)
    tree.evict([root], [1])
    for columns, keep, message in (
        ([0, 3], 1, "columns: got 3 after 0 .* below 3, that of its last page"),
        ([2, 0], 1, "columns: got 0 after 2"),
        ([0, 1], 1, "columns: got 1, which was evicted"),
        ([0, 2], 2, "keep: got 2, expected 1 <= keep < 2, the columns"),
        ([0, 2], 0, "keep: got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            tree.compact(root, columns, keep)
    assert tree.page_holders(root).tolist() == [1, 0, 1, 1]


def test_a_pinned_page_stays_until_it_is_unpinned() -> None:
    tree, [root] = tree_of(20)
    pin = tree.pin(root, at=7)
    [child] = tree.fork(root)
    with pytest.raises(ValueError, match=rf"columns: got 1, a page of branch {child} .* unpin {pin} first"):
        tree.evict([child], [2, 1])
    assert tree.evict([root, child], [2]) == 1
    tree.unpin(pin)
    assert tree.evict([root, child], [0, 1]) == 2


def test_a_large_pool_is_free_until_used() -> None:
    tree = KVTree(num_pages=2**27 - 1)
    assert tree.page_size == 16
    assert tree.free_pages == 2**27 - 1


def test_empty_calls() -> None:
    tree, [root] = tree_of(3)
    assert tree.fork(root, 0) == []
    done = tree.append([], [])
    assert done.slots.shape == (0,)
    assert done.copies.shape == (0, 2)
    assert tree.append([root], [[]]).slots.shape == (0,)
    assert tree.evict([], [0]) == tree.evict([root], []) == 0
    with pytest.raises(ValueError, match=r"columns: got 0, .* column < 0; .* has 0 pages"):
        tree.evict([tree.create()], [0])
    tables, lengths = tree.block_tables([])
    assert tables.shape == (0, 0)
    assert lengths.shape == (0,)
    assert tree.match([]) is None
    assert tree.match(np.array([9], np.int32)) is None


def test_accepts_what_indexes_as_an_integer() -> None:
    tree, [root] = tree_of(3)
    [child] = tree.fork(np.int64(root), n=np.int32(1), at=np.uint8(2))
    tree.append(np.array([child]), [np.array([5, 6], np.uint16)])
    assert tree.tokens(child).tolist() == [0, 1, 5, 6]


# On a tree of one branch b with six tokens, and the pin b + 1 of five of them. Any: they pass wrong types.
Call = Callable[[Any, int], Any]
BAD_CALLS: dict[str, tuple[Call, type[Exception], str]] = {
    "unknown branch": (lambda t, b: t.fork(10**9), ValueError, "branch: got id 1000000000, .*released, or"),
    "negative id": (lambda t, b: t.length(-1), ValueError, "branch: got id -1"),
    "id of another tree": (lambda t, b: t.release(KVTree(1).create()), ValueError, "another tree"),
    "id too large": (lambda t, b: t.length(2**70), ValueError, "branch: got 1180591620717411303424"),
    "id not an int": (lambda t, b: t.length(1.0), TypeError, r"branch: got 1.0 \(float\), expected an int"),
    "id a bool": (lambda t, b: t.release(True), TypeError, r"branch: got True \(bool\)"),
    "id None": (lambda t, b: t.release(None), TypeError, "branch: got None"),
    "fork past the end": (lambda t, b: t.fork(b, at=7), ValueError, "at: got 7, expected 0 <= at <= 6"),
    "fork at negative": (lambda t, b: t.fork(b, at=-1), ValueError, "at: got -1"),
    "fork at a float": (lambda t, b: t.fork(b, at=2.0), TypeError, "at: got 2.0"),
    "fork negative n": (lambda t, b: t.fork(b, -2), ValueError, "n: got -2, expected 0 <= n"),
    "fork huge n": (lambda t, b: t.fork(b, 2**40), ValueError, "n: got 1099511627776"),
    "fork n a bool": (lambda t, b: t.fork(b, True), TypeError, "n: got True"),
    "pin past the end": (lambda t, b: t.pin(b, at=7), ValueError, "at: got 7"),
    "unpin a branch": (lambda t, b: t.unpin(b), ValueError, "pin: got id .*is a branch"),
    "release a pin": (lambda t, b: t.release(b + 1), ValueError, "is a pin"),
    "truncate a pin": (lambda t, b: t.truncate(b + 1, 0), ValueError, "is a pin"),
    "append to a pin": (lambda t, b: t.append([b + 1], [[1]]), ValueError, "is a pin"),
    "truncate past the end": (
        lambda t, b: t.truncate(b, 7),
        ValueError,
        "length: got 7, expected 0 <= length <= 6",
    ),
    "truncate negative": (lambda t, b: t.truncate(b, -1), ValueError, "length: got -1"),
    "append twice": (lambda t, b: t.append([b, b], [[1], [2]]), ValueError, "branches: got branch .* twice"),
    "append uneven": (
        lambda t, b: t.append([b], [[1], [2]]),
        ValueError,
        "tokens: got 2 token lists for 1 branches",
    ),
    "append half stale": (lambda t, b: t.append([b, 10**9], [[1], [2]]), ValueError, "got id 1000000000"),
    "token negative": (
        lambda t, b: t.append([b], [[1, -1]]),
        ValueError,
        r"tokens\[1\]: got -1 .*expected 0 to",
    ),
    "token too large": (lambda t, b: t.append([b], [[2**31]]), ValueError, r"tokens\[0\]: got 2147483648"),
    "token array negative": (lambda t, b: t.append([b], [np.array([-5])]), ValueError, "got -5 at index 0"),
    "token array huge": (
        lambda t, b: t.append([b], [np.array([2**64 - 5], np.uint64)]),
        ValueError,
        "at index 0",
    ),
    "token a float": (lambda t, b: t.append([b], [[1.5]]), TypeError, r"tokens\[0\]: got 1.5"),
    "token array of floats": (lambda t, b: t.append([b], [np.ones(2)]), TypeError, "dtype float64"),
    "token array of bools": (lambda t, b: t.append([b], [np.ones(2, bool)]), TypeError, "dtype bool"),
    "token array 2-d": (lambda t, b: t.append([b], [np.ones((2, 2), int)]), TypeError, "2 dimensions"),
    "tokens not nested": (
        lambda t, b: t.append([b], [1]),
        TypeError,
        r"tokens: got 1 \(int\)|tokens\[0\]: got 1",
    ),
    "tokens not a list": (lambda t, b: t.append([b], 1), TypeError, "tokens: got 1"),
    "branches not a list": (lambda t, b: t.append(b, [[1]]), TypeError, "branches: got"),
    "branches with a bool": (lambda t, b: t.block_tables([b, True]), TypeError, r"branches\[1\]: got True"),
    "evict twice": (lambda t, b: t.evict([b, b], [0]), ValueError, "branches: got branch .* twice"),
    "evict a column twice": (lambda t, b: t.evict([b], [0, 0]), ValueError, "columns: got column 0 twice"),
    "evict from a pin": (lambda t, b: t.evict([b + 1], [0]), ValueError, "is a pin"),
    "evict from nobody": (lambda t, b: t.evict([10**9, b], [0]), ValueError, "got id 1000000000"),
    "evict a pinned page": (
        lambda t, b: t.evict([b], [0]),
        ValueError,
        "columns: got 0, .* is pinned; unpin",
    ),
    "evict the last page": (lambda t, b: t.evict([b], [1]), ValueError, "got 1, .*column < 1; .* the last"),
    "evict no page": (lambda t, b: t.evict([b], [2]), ValueError, "columns: got 2, expected 0 <= column"),
    "evict before the first": (lambda t, b: t.evict([b], [-1]), ValueError, "columns: got -1"),
    "evict a float": (lambda t, b: t.evict([b], [0.0]), TypeError, r"columns\[0\]: got 0.0"),
    "evict no list": (lambda t, b: t.evict([b], 0), TypeError, "columns: got 0"),
    "compact a falling column": (
        lambda t, b: t.compact(b, [1, 0], 1),
        ValueError,
        "got 1 after -1 .* below 1",
    ),
    "compact a column twice": (
        lambda t, b: t.compact(b, [0, 0], 1),
        ValueError,
        "a page of branch .* 1 others",
    ),
    "compact the last page": (lambda t, b: t.compact(b, [0, 1], 1), ValueError, "that 1 others hold"),
    "compact a pin": (lambda t, b: t.compact(b + 1, [0], 1), ValueError, "is a pin"),
    "compact nothing": (lambda t, b: t.compact(b, [], 1), ValueError, "keep: got 1, expected 1 <= keep < 0"),
    "compact a float": (lambda t, b: t.compact(b, [0.0], 1), TypeError, r"columns\[0\]: got 0.0"),
    "keep a float": (lambda t, b: t.compact(b, [0], 1.0), TypeError, "keep: got 1.0"),
    "pages_needed negative": (lambda t, b: t.pages_needed(b, -1), ValueError, "n: got -1"),
    "pages_needed huge": (lambda t, b: t.pages_needed(b, 2**62), ValueError, "n: got"),
    "match a string": (lambda t, b: t.match("abc"), TypeError, r"tokens\[0\]: got 'a'"),
    "out of pages": (
        lambda t, b: t.append([b], [[0] * 99]),
        OutOfPagesError,
        "26 needed, 6 of 8 free; release",
    ),
}


@pytest.mark.parametrize("case", BAD_CALLS)
def test_bad_call_names_the_argument_and_changes_nothing(case: str) -> None:
    call, error, message = BAD_CALLS[case]
    tree, [branch] = tree_of(6, num_pages=8)
    pin = tree.pin(branch, at=5)
    assert pin == branch + 1

    def state() -> tuple[str, int, list[int], list[int]]:
        return repr(tree.stats()), tree.free_pages, tree.tokens(branch).tolist(), tree.tokens(pin).tolist()

    before = state()
    with pytest.raises(error, match=message):
        call(tree, branch)
    assert state() == before


@pytest.mark.parametrize(
    ("num_pages", "page_size", "message"),
    [
        (0, 16, "num_pages: got 0, expected at least 1"),
        (-1, 16, "num_pages: got -1"),
        (8, 0, "page_size: got 0, expected at least 1"),
        (2**27, 16, "num_pages: got 134217728 pages of 16 tokens"),
        (2**62, 2**62, "num_pages: got"),
    ],
)
def test_bad_pool(num_pages: int, page_size: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        KVTree(num_pages, page_size)


def test_pool_sizes_are_ints() -> None:
    with pytest.raises(TypeError, match=r"num_pages: got 8.0 \(float\)"):
        KVTree(8.0)  # type: ignore[arg-type]


def test_a_batch_that_does_not_fit_appends_to_none() -> None:
    tree, [first, second] = tree_of(4, 4, num_pages=4)
    with pytest.raises(OutOfPagesError, match="3 needed, 2 of 4 free"):
        tree.append([first, second], [[1], [1] * 5])
    assert (tree.length(first), tree.length(second), tree.free_pages) == (4, 4, 2)
    tree.append([first, second], [[1], [1] * 4])
    assert tree.free_pages == 0
