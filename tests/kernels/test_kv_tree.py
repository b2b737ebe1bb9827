"""KVTree against a plain model that stores every branch's tokens whole, and its refusal of bad input."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tts_kernels import KVTree, OutOfPagesError

PAGE_SIZE = 4
NUM_PAGES = 20
_new_page = itertools.count().__next__


@dataclass
class Holder:
    """A branch or pin of the model. `pages` are names of its pages, equal where one is shared, None where it
    was evicted."""

    tokens: list[int] = field(default_factory=list)
    pages: list[int | None] = field(default_factory=list)
    pinned: bool = False

    def prefix(self, length: int, pinned: bool = False) -> Holder:
        return Holder(self.tokens[:length], self.pages[: -(-length // PAGE_SIZE)], pinned)

    def ends_in_a_hole(self, length: int) -> bool:
        return length > 0 and self.pages[(length - 1) // PAGE_SIZE] is None

    def tokens_held(self) -> list[int]:
        """Its tokens, -1 where they were evicted."""
        return [
            -1 if self.pages[position // PAGE_SIZE] is None else token
            for position, token in enumerate(self.tokens)
        ]


class Model(dict[int, Holder]):
    def append(self, branch: int, tokens: list[int]) -> None:
        holder = self[branch]
        others = {page for id_, other in self.items() if id_ != branch for page in other.pages}
        if tokens and len(holder.tokens) % PAGE_SIZE and holder.pages[-1] in others:
            holder.pages[-1] = _new_page()
        holder.tokens += tokens
        while len(holder.pages) * PAGE_SIZE < len(holder.tokens):
            holder.pages.append(_new_page())

    def visible_slots(self) -> dict[int, int]:
        """For each resident page, how many of its slots its longest holder sees."""
        visible: dict[int, int] = {}
        for holder in self.values():
            for column, page in enumerate(holder.pages):
                if page is None:
                    continue
                seen = min(PAGE_SIZE, len(holder.tokens) - column * PAGE_SIZE)
                visible[page] = max(visible.get(page, 0), seen)
        return visible

    def longest_match(self, tokens: list[int]) -> tuple[int, int] | None:
        def common(holder: Holder) -> int:
            pairs = zip(holder.tokens_held(), tokens, strict=False)
            return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))

        best = max(self, key=lambda id_: (common(self[id_]), -id_), default=None)
        return None if best is None or common(self[best]) == 0 else (best, common(self[best]))

    def evict(self, branches: list[int], columns: list[int]) -> bool:
        """Whether the tree is to do it."""
        pinned = {page for holder in self.values() if holder.pinned for page in holder.pages}
        for branch in branches:
            inner = self[branch].pages[:-1]
            for column in columns:
                if not 0 <= column < len(inner) or inner[column] is None or inner[column] in pinned:
                    return False
        for branch, column in itertools.product(branches, columns):
            self[branch].pages[column] = None
        return True


class TreeMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.tree = KVTree(NUM_PAGES, PAGE_SIZE)
        self.model = Model()
        self.peak = 0
        # What the caller keeps: per slot the (token, position) last written, standing for its K and V.
        self.kv = np.full((NUM_PAGES, PAGE_SIZE, 2), -1)

    def branches(self) -> list[int]:
        return [id_ for id_, holder in self.model.items() if not holder.pinned]

    def pick(self, data: st.DataObject, ids: list[int]) -> int:
        return data.draw(st.sampled_from(sorted(ids)))

    def pick_prefix(self, data: st.DataObject) -> tuple[int, int | None, int]:
        """A holder, a value of `at`, and the length that it means."""
        id_ = self.pick(data, list(self.model))
        length = len(self.model[id_].tokens)
        at = data.draw(st.none() | st.integers(0, length))
        return id_, at, length if at is None else at

    @rule()
    def create(self) -> None:
        id_ = self.tree.create()
        assert id_ not in self.model
        self.model[id_] = Holder()

    @precondition(lambda self: self.model)
    @rule(data=st.data(), n=st.integers(0, 3))
    def fork(self, data: st.DataObject, n: int) -> None:
        source, at, length = self.pick_prefix(data)
        if self.model[source].ends_in_a_hole(length):
            self.refused(f"at: got {length}, but positions", lambda: self.tree.fork(source, n, at))
            return
        children = self.tree.fork(source, n, at)
        assert len(set(children) - set(self.model)) == n == len(children)
        for child in children:
            self.model[child] = self.model[source].prefix(length)

    @precondition(lambda self: self.branches())
    @rule(data=st.data(), as_arrays=st.booleans())
    def append(self, data: st.DataObject, as_arrays: bool) -> None:
        branches = data.draw(st.permutations(self.branches()))
        branches = branches[: data.draw(st.integers(1, len(branches)))]
        tokens = [data.draw(st.lists(st.integers(0, 2), max_size=6)) for _ in branches]
        bound = sum(self.tree.pages_needed(b, len(t)) for b, t in zip(branches, tokens, strict=True))
        given: Any = [np.array(t, np.int64) for t in tokens] if as_arrays else tokens
        ids: Any = np.array(branches) if as_arrays else branches

        model, before = copy.deepcopy(self.model), self.snapshot()
        for branch, new in zip(branches, tokens, strict=True):
            model.append(branch, new)
        if len(model.visible_slots()) > NUM_PAGES:
            with pytest.raises(OutOfPagesError, match=f"of {NUM_PAGES} free"):
                self.tree.append(ids, given)
            assert self.snapshot() == before
            return

        free = self.tree.free_pages
        done = self.tree.append(ids, given)
        assert free - self.tree.free_pages <= bound
        assert done.slots.dtype == done.copies.dtype == np.int32
        assert len(set(done.slots.tolist())) == len(done.slots) == sum(map(len, tokens))
        for source, target in done.copies:
            self.kv[target] = self.kv[source]
        slots = iter(done.slots)
        for branch, new in zip(branches, tokens, strict=True):
            start = len(self.model[branch].tokens)
            for position, token in enumerate(new, start):
                self.kv.reshape(-1, 2)[next(slots)] = token, position
        self.model = model

    @precondition(lambda self: self.branches())
    @rule(data=st.data())
    def truncate(self, data: st.DataObject) -> None:
        branch = self.pick(data, self.branches())
        length = data.draw(st.integers(0, len(self.model[branch].tokens)))
        if self.model[branch].ends_in_a_hole(length):
            self.refused(f"length: got {length}, but positions", lambda: self.tree.truncate(branch, length))
            return
        self.tree.truncate(branch, length)
        self.model[branch] = self.model[branch].prefix(length)

    @precondition(lambda self: self.branches())
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        branch = self.pick(data, self.branches())
        self.tree.release(branch)
        del self.model[branch]
        with pytest.raises(ValueError, match="does not hold"):
            self.tree.length(branch)

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def pin(self, data: st.DataObject) -> None:
        source, at, length = self.pick_prefix(data)
        if self.model[source].ends_in_a_hole(length):
            self.refused(f"at: got {length}, but positions", lambda: self.tree.pin(source, at))
            return
        self.model[self.tree.pin(source, at)] = self.model[source].prefix(length, pinned=True)

    @precondition(lambda self: len(self.branches()) < len(self.model))
    @rule(data=st.data())
    def unpin(self, data: st.DataObject) -> None:
        pin = self.pick(data, [id_ for id_, holder in self.model.items() if holder.pinned])
        self.tree.unpin(pin)
        del self.model[pin]

    @precondition(lambda self: any(len(self.model[b].pages) > 1 for b in self.branches()))
    @rule(data=st.data(), as_arrays=st.booleans())
    def evict(self, data: st.DataObject, as_arrays: bool) -> None:
        longest = max(self.branches(), key=lambda b: len(self.model[b].pages))
        others = data.draw(st.lists(st.sampled_from(self.branches()), max_size=3, unique=True))
        branches = [longest, *(b for b in others if b != longest)]
        last = len(self.model[longest].pages) - 1
        columns = data.draw(
            st.lists(st.integers(0, last - 1), max_size=2, unique=True)
            | st.lists(st.integers(-1, last + 1), max_size=3, unique=True)
        )
        given = (np.array(branches), np.array(columns, np.int16)) if as_arrays else (branches, columns)
        before = len(self.model.visible_slots())
        if not self.model.evict(branches, columns):
            self.refused("columns: got", lambda: self.tree.evict(*given))
            return
        assert self.tree.evict(*given) == before - len(self.model.visible_slots())

    @rule(data=st.data(), tail=st.lists(st.integers(0, 2), max_size=6))
    def match(self, data: st.DataObject, tail: list[int]) -> None:
        known = self.model[self.pick(data, list(self.model))].tokens if self.model else []
        tokens = known[: data.draw(st.integers(0, len(known)))] + tail
        assert self.tree.match(tokens) == self.model.longest_match(tokens)

    def refused(self, message: str, call: Callable[[], Any]) -> None:
        before = self.snapshot()
        with pytest.raises(ValueError, match=message):
            call()
        assert self.snapshot() == before

    def snapshot(self) -> tuple[str, list[list[int]], list[list[int]]]:
        holders = list(self.model)
        tables, _ = self.tree.block_tables(holders)
        tokens = [self.tree.tokens(id_).tolist() for id_ in holders]
        return repr(self.tree.stats()), tokens, tables.tolist()

    @invariant()
    def every_branch_reads_its_own_tokens(self) -> None:
        tables, lengths = self.tree.block_tables(list(self.model))
        for (id_, holder), table, length in zip(self.model.items(), tables, lengths, strict=True):
            assert length == self.tree.length(id_) == len(holder.tokens)
            assert self.tree.tokens(id_).tolist() == holder.tokens_held()
            assert (table[len(holder.pages) :] == -1).all()
            for position, token in enumerate(holder.tokens):
                if holder.pages[position // PAGE_SIZE] is None:
                    assert table[position // PAGE_SIZE] == -1
                    continue
                read = self.kv[table[position // PAGE_SIZE], position % PAGE_SIZE]
                assert read.tolist() == [token, position]

    @invariant()
    def counts_agree(self) -> None:
        stats, visible = self.tree.stats(), self.model.visible_slots()
        self.peak = max(self.peak, len(visible))
        assert stats.branches == len(self.branches())
        assert stats.pins == len(self.model) - stats.branches
        assert stats.logical_tokens == sum(len(self.model[b].tokens) for b in self.branches())
        holes = sum(self.model[b].pages.count(None) for b in self.branches())
        assert stats.evicted_tokens == holes * PAGE_SIZE
        assert stats.unique_tokens == sum(visible.values())
        assert stats.resident_pages == len(visible) == NUM_PAGES - self.tree.free_pages
        assert stats.peak_pages == self.peak
        slots = stats.resident_pages * PAGE_SIZE
        assert stats.fragmentation == pytest.approx(1 - stats.unique_tokens / slots if slots else 0)

    def teardown(self) -> None:
        for id_, holder in self.model.items():
            (self.tree.unpin if holder.pinned else self.tree.release)(id_)
        assert self.tree.free_pages == NUM_PAGES
        assert self.tree.stats().unique_tokens == 0


TestTreeMachine = TreeMachine.TestCase
TestTreeMachine.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


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
