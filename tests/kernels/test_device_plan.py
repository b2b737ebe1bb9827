"""The work list for a GPU: executed in float64 it gives what the reference gives, however it came about."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from torch import Tensor
from work_lists import DIRECT, Branches, decode_tables, parts

from tts_kernels import DevicePlan, KVTree, WorkCapacity


@st.composite
def forests(draw: st.DrawFn) -> tuple[Branches, Tensor, Tensor, Tensor]:
    """Roots, forks at any page, repeats, branches that end inside pages others go on in; several queries;
    holes."""
    page_size = draw(st.sampled_from([1, 4, 16]))
    paths: list[list[int]] = []
    pages = iter(range(10_000))
    for _ in range(draw(st.integers(0, 8))):
        parent: list[int] = draw(st.sampled_from([[], *paths]))
        shared = parent[: draw(st.integers(0, len(parent)))]
        fresh = draw(st.integers(0 if shared else 1, 9) | st.sampled_from([40, 150]))
        paths.append(shared + [next(pages) for _ in range(fresh)])
    lengths = [page_size * len(path) - draw(st.integers(0, page_size - 1)) for path in paths]
    query_lens = [min(draw(st.sampled_from([0, 1, 1, 1, 1, 5, 40])), length) for length in lengths]
    evicted = draw(st.lists(st.integers(0, 160), max_size=6))  # the same columns of several branches
    for path, length, queries in zip(paths, lengths, query_lens, strict=True):
        if draw(st.booleans()):
            for column in evicted:
                if column < (length - max(queries, 1)) // page_size:
                    path[column] = -1
    width = max(map(len, paths), default=0)
    tables = torch.tensor([p + [-1] * (width - len(p)) for p in paths], dtype=torch.int32).view(
        len(paths), width
    )
    lengths_tensor = torch.tensor(lengths, dtype=torch.int32)
    branches = Branches(
        page_size,
        next(pages) + 1,
        group=draw(st.sampled_from([1, 3, 8, 20])),
        kv_heads=draw(st.sampled_from([1, 2])),
    )
    return branches, tables, lengths_tensor, torch.tensor(query_lens, dtype=torch.int32)


@settings(max_examples=60)
@given(forest=forests(), invariant_bits=st.booleans())
def test_random_forests(forest: tuple[Branches, Tensor, Tensor, Tensor], invariant_bits: bool) -> None:
    branches, *tables = forest
    planner = branches.planner(branch_invariant=invariant_bits)
    branches.check(planner.update(*tables), *tables)


class Search(RuleBasedStateMachine):
    """Plans of one planner while branches grow, fork, end, roll back and lose pages, as a search does it."""

    @initialize(page_size=st.sampled_from([1, 4, 16]), fixed=st.booleans())
    def start(self, page_size: int, fixed: bool) -> None:
        self.pool = Branches(page_size, 1024)
        self.tree = KVTree(1024, page_size)
        capacity = WorkCapacity(256, 64, 512, 4096, 1024) if fixed else None
        self.planner = self.pool.planner(capacity=capacity)
        self.branches = [self.tree.create()]
        self.step_all(30)

    @rule(tokens=st.sampled_from([1, 1, 1, 2, 17]))
    def step_all(self, tokens: int) -> None:
        self.tree.append(self.branches, [[1] * tokens] * len(self.branches))

    @precondition(lambda self: len(self.branches) < 6)
    @rule(data=st.data(), n=st.integers(1, 3))
    def fork(self, data: st.DataObject, n: int) -> None:
        branch = data.draw(st.sampled_from(self.branches))
        self.branches += self.tree.fork(branch, n, at=data.draw(st.sampled_from(self.cuts(branch))))

    @precondition(lambda self: len(self.branches) > 1)
    @rule(data=st.data())
    def prune(self, data: st.DataObject) -> None:
        branch = data.draw(st.sampled_from(self.branches))
        self.branches.remove(branch)
        self.tree.release(branch)

    @rule(data=st.data())
    def roll_back(self, data: st.DataObject) -> None:
        branch = data.draw(st.sampled_from(self.branches))
        self.tree.truncate(branch, data.draw(st.sampled_from(self.cuts(branch))))

    @rule(data=st.data(), together=st.booleans())
    def evict(self, data: st.DataObject, together: bool) -> None:
        branch = data.draw(st.sampled_from(self.branches))
        tables, _ = self.tree.block_tables(self.branches)
        table = self.table(branch)
        inner = [column for column, page in enumerate(table[:-1]) if page >= 0]
        if inner:
            column = data.draw(st.sampled_from(inner))
            same = tables[:, column] == table[column]
            # Not from one whose last page it is.
            others = [
                b for b, s in zip(self.branches, same, strict=True) if s and len(self.table(b)) > column + 1
            ]
            self.tree.evict(others if together else [branch], [column])

    def table(self, branch: int) -> list[int]:
        """Pages of a branch, -1 in holes."""
        return self.tree.block_tables([branch])[0][0].tolist()

    def cuts(self, branch: int) -> list[int]:
        """Lengths to which it can be cut."""
        table, size = self.table(branch), self.tree.page_size
        return [n for n in range(1, self.tree.length(branch) + 1) if table[(n - 1) // size] >= 0]

    @invariant()
    def plan_is_right(self) -> None:
        if not hasattr(self, "branches"):
            return
        tables, lengths = map(torch.from_numpy, self.tree.block_tables(self.branches))
        self.pool.check(
            self.planner.update(tables, lengths), tables, lengths, torch.ones(len(lengths), dtype=torch.int32)
        )


TestSearch = Search.TestCase
TestSearch.settings = settings(max_examples=15, stateful_step_count=15)


def test_growing_tails_only_advance_the_plan() -> None:
    pool = Branches(16, 512)
    planner = pool.planner()
    tables, lengths = decode_tables(6, 20, 12)
    ones = torch.ones(6, dtype=torch.int32)
    advanced = []
    for step in range(130):
        columns = 32 + step // 16
        plan = planner.update(tables[:, :columns].contiguous(), lengths + step)
        advanced.append(planner.advanced)
        pool.check(plan, tables, lengths + step, ones)
        if step % 16 == 15:
            fresh = 200 + 6 * (step // 16) + torch.arange(6, dtype=torch.int32)
            tables = torch.cat([tables, fresh[:, None]], 1)
    assert not advanced[0]
    # There is room for 64 tokens behind the tails; the first lie in the page that is begun.
    assert advanced.count(False) == 2


def test_holes_between_updates_are_seen_and_tails_grow_on() -> None:
    pool = Branches(16, 512)
    planner = pool.planner()
    tables, lengths = decode_tables(6, 20, 3)
    ones = torch.ones(6, dtype=torch.int32)
    pool.check(planner.update(tables, lengths), tables, lengths, ones)
    for rows, column in ((slice(6), 4), (slice(2, 3), 21), (slice(6), 20)):
        tables[rows, column] = -1
        pool.check(planner.update(tables, lengths), tables, lengths, ones)
        assert not planner.advanced
        lengths = lengths + 1
        pool.check(planner.update(tables, lengths), tables, lengths, ones)
        assert planner.advanced
    # A page that is new to the planner, and gone already.
    tables = torch.cat([tables, torch.arange(400, 412, dtype=torch.int32).view(6, 2)], 1)
    tables[:, 23] = -1
    lengths = lengths + 32
    pool.check(planner.update(tables, lengths), tables, lengths, ones)


def tokens_read(plan: DevicePlan) -> int:
    return int(parts(plan)["items"][:, 2].sum())


def test_a_shared_prefix_is_read_once() -> None:
    pool = Branches(16, 2048, group=4)
    tables, lengths = decode_tables(64, 128, 4)
    plan = pool.planner().update(tables, lengths)
    rows, tile = 64 * 4, 128
    assert tokens_read(plan) == rows // tile * 2048 + 64 * 49


def test_a_small_fork_is_read_again_where_partial_results_cost_more() -> None:
    pool = Branches(16, 2048, group=4)
    tables, lengths = decode_tables(2, 1, 64)
    plan = pool.planner().update(tables, lengths)
    starts = parts(plan)["items"][:, 1]
    assert (starts == 0).sum() == 2, "each branch begins at the root: no partial result for 16 shared tokens"


def test_nothing_shared_is_plain_paged_decode() -> None:
    pool = Branches(16, 8192)
    tables, lengths = decode_tables(64, 0, 64)
    plan = pool.planner().update(tables, lengths)
    items = parts(plan)["items"]
    assert len(items) == 64, "one tile a branch"
    assert (items[:, 6] == DIRECT).all()
    assert plan.num_merges == 0


def test_one_long_branch_is_split_over_the_device() -> None:
    pool = Branches(16, 8192)
    tables, lengths = decode_tables(1, 0, 4096)
    items = parts(pool.planner().update(tables, lengths))["items"]
    assert len(items) >= 16
    assert items[:, 2].max() <= 2 * items[:, 2].min() + 16, "splits of about equal length"


def test_long_items_come_first() -> None:
    pool = Branches(16, 8192)
    tables, lengths = decode_tables(40, 300, 9)
    items = parts(pool.planner().update(tables, lengths))["items"]
    same = items[items[:, 7] == items[0, 7]][:, 2]
    assert (same.diff() <= 0).all()


def test_chunks_of_a_branch_do_not_depend_on_the_others() -> None:
    pool = Branches(16, 8192, group=3)
    tables, lengths = decode_tables(8, 100, 50)

    def chunks(branches: slice) -> list[tuple[int, ...]]:
        plan = pool.planner(branch_invariant=True).update(tables[branches], lengths[branches])
        query = parts(plan)["query_order"].tolist().index(0)
        rows = range(3 * query, 3 * query + 3)
        items = parts(plan)["items"].tolist()
        return sorted((i[1], i[2], i[7]) for i in items if i[4] <= rows[0] and i[5] >= rows[-1] + 1)

    expected = [(0, 1024, 64), (1024, 1024, 64), (2048, 337, 64)]
    assert chunks(slice(0, 8)) == chunks(slice(0, 1)) == expected


def test_branches_without_a_query_come_back() -> None:
    """Their absence must not be taken for the tables of those that had one."""
    pool = Branches(16, 512)
    for idle in (0, 2, 5):
        planner = pool.planner()
        tables, lengths = decode_tables(6, 3, 2)
        query_lens = torch.ones(6, dtype=torch.int32)
        query_lens[idle] = 0
        pool.check(planner.update(tables, lengths, query_lens), tables, lengths, query_lens)
        ones = torch.ones(6, dtype=torch.int32)
        pool.check(planner.update(tables, lengths + 1), tables, lengths + 1, ones)
        pool.check(planner.update(tables, lengths + 2, query_lens), tables, lengths + 2, query_lens)


def test_chunks_stay_where_they_are_as_a_branch_grows() -> None:
    pool = Branches(16, 512)
    table = torch.arange(80, dtype=torch.int32)[None]
    planner = pool.planner(branch_invariant=True)
    for length in range(1000, 1100):
        lengths = torch.tensor([length], dtype=torch.int32)
        grown = parts(planner.update(table, lengths))
        anew = parts(pool.planner(branch_invariant=True).update(table, lengths))
        for name in ("items", "merge_base"):
            assert torch.equal(grown[name], anew[name]), length
