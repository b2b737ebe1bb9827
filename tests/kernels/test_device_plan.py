"""The work list for a GPU: executed in float64 it gives what the reference gives, however it came about."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from torch import Tensor

from tts_kernels import (
    CapacityError,
    DevicePlan,
    DevicePlanner,
    KVTree,
    OutOfPagesError,
    TTSError,
    WorkCapacity,
    reference,
)

DIRECT = -(2**31)
HEAD_DIM = 16


def parts(plan: DevicePlan) -> dict[str, Tensor]:
    """The sections of a work list, cut to what its header says is there."""
    work, c = plan.work, plan.capacity
    items, queries, merges, pages, partials = work[:5].tolist()
    sizes = {
        "header": (16, 5),
        "items": (8 * c.items, 8 * items),
        "query_order": (c.queries, queries),
        "query_position": (c.queries, queries),
        "query_shared": (c.queries, queries),
        "merge_begin": (c.queries + 16, queries + 1),
        "merge_base": (c.merges, merges),
        "pages": (c.pages, pages),
    }
    result, at = {}, 0
    for name, (room, used) in sizes.items():
        assert used <= room
        result[name] = work[at : at + used]
        at += room
    assert at == len(work)
    assert partials <= c.partials
    result["items"] = result["items"].view(-1, 8)
    return result


def execute(plan: DevicePlan, q: Tensor, k_slots: Tensor, v_slots: Tensor) -> tuple[Tensor, Tensor]:
    """What kernels make of a plan, in float64. q [T, heads, d], slots [num_slots, kv_heads, d]."""
    p = parts(plan)
    group = plan.num_q_heads // plan.num_kv_heads
    order, position = p["query_order"].long(), p["query_position"]
    out = torch.full((plan.num_q_heads, plan.num_queries, HEAD_DIM), torch.nan, dtype=torch.float64)
    lse = torch.full((plan.num_q_heads, plan.num_queries), torch.nan, dtype=torch.float64)
    assert plan.num_items >= len(p["items"])
    partial_out = torch.full(
        (plan.num_q_heads, int(p["header"][4]), HEAD_DIM), torch.nan, dtype=torch.float64
    )
    partial_lse = partial_out[:, :, 0].clone()
    for offset, first, tokens, unmasked, begin, end, base, height in p["items"].tolist():
        assert 0 < end - begin <= height
        assert tokens > 0
        assert 0 <= unmasked <= tokens
        token = torch.arange(tokens)
        page = p["pages"][offset + token // plan.page_size].long()
        held = page >= 0
        assert held[:unmasked].all()
        slot = page.clamp(min=0) * plan.page_size + token % plan.page_size
        row = torch.arange(begin, end)
        q_row, member = order[row // group], row % group
        seen = first + token <= position[row // group, None]
        assert seen[:, :unmasked].all()
        for kv_head in range(plan.num_kv_heads):
            head = kv_head * group + member
            s = q[q_row, head].double() @ k_slots[slot, kv_head].T * HEAD_DIM**-0.5
            s = s.masked_fill(~(seen & held), -torch.inf)
            item_lse, item_out = s.logsumexp(1), s.softmax(1).nan_to_num() @ v_slots[slot, kv_head]
            to = (head, q_row) if base == DIRECT else (head, base + row)
            target_out, target_lse = (out, lse) if base == DIRECT else (partial_out, partial_lse)
            assert base == DIRECT or base + begin >= 0
            assert target_lse[to].isnan().all(), "two items write one row"
            target_out[to], target_lse[to] = item_out, item_lse
    for query in range(plan.num_queries):
        bases = p["merge_base"][p["merge_begin"][query] : p["merge_begin"][query + 1]].long()
        if not len(bases):
            continue
        assert plan.num_merges > query
        for head in range(plan.num_q_heads):
            slots = bases + query * group + head % group
            weights = partial_lse[head, slots]
            assert lse[head, order[query]].isnan(), "merged and written directly"
            lse[head, order[query]] = weights.logsumexp(0)
            out[head, order[query]] = weights.softmax(0) @ partial_out[head, slots]
    return out.transpose(0, 1), lse.T


@dataclass
class Branches:
    """Tables over `num_pages` pages of random keys and values."""

    page_size: int
    num_pages: int
    group: int = 2
    kv_heads: int = 1
    generator: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(0))

    def __post_init__(self) -> None:
        shape = (2, self.num_pages * self.page_size, self.kv_heads, HEAD_DIM)
        self.k, self.v = torch.randn(shape, generator=self.generator, dtype=torch.float64)

    def planner(self, **options: object) -> DevicePlanner:
        return DevicePlanner(
            num_q_heads=self.group * self.kv_heads,
            num_kv_heads=self.kv_heads,
            head_dim=HEAD_DIM,
            page_size=self.page_size,
            num_pages=self.num_pages,
            dtype=torch.bfloat16,
            device="cpu",
            **options,
        )

    def check(self, plan: DevicePlan, tables: Tensor, lengths: Tensor, query_lens: Tensor) -> None:
        count = int(query_lens.sum())
        assert plan.num_queries == count
        q = torch.randn((count, self.group * self.kv_heads, HEAD_DIM), generator=self.generator)
        out, lse = execute(plan, q, self.k, self.v)
        expected = [torch.empty(0, *out.shape[1:]), torch.empty(0, *lse.shape[1:])]
        if count:
            expected = reference.tree_attention(
                q, self.k, self.v, tables, lengths, query_lens, page_size=self.page_size
            )
        torch.testing.assert_close(out, expected[0].to(out))
        torch.testing.assert_close(lse, expected[1].to(lse))


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


@settings(max_examples=60, deadline=None)
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
TestSearch.settings = settings(max_examples=15, stateful_step_count=15, deadline=None)


def decode_tables(branches: int, shared: int, own: int, page_size: int = 16) -> tuple[Tensor, Tensor]:
    """Branches that share `shared` pages and have `own` to themselves, of which the last holds one token."""
    prefix = torch.arange(shared, dtype=torch.int32).expand(branches, -1)
    rest = shared + torch.arange(branches * own, dtype=torch.int32).view(branches, own)
    length = page_size * (shared + own - 1) + 1
    return torch.cat([prefix, rest], 1), torch.full((branches,), length, dtype=torch.int32)


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


def test_a_full_pool_fits_the_capacity_for_its_queries() -> None:
    """Reading prefixes again below forks takes longer lists of pages than the pool has."""
    for nodes, tokens in [((1, 8, 64), (32768, 1024, 256)), ((1, 2, 4, 8, 16), (256, 16, 16, 16, 16))]:
        tables, count = torch.zeros((1, 0), dtype=torch.int32), 0
        for level, length in zip(nodes, tokens, strict=True):
            pages = length // 16
            fresh = count + torch.arange(level * pages, dtype=torch.int32).view(level, pages)
            count += level * pages
            tables = torch.cat([tables.repeat_interleave(level // len(tables), 0), fresh], 1)
        pool = Branches(16, count, group=16)
        capacity = WorkCapacity.for_queries(
            len(tables), num_q_heads=16, num_kv_heads=1, num_pages=count, page_size=16, num_sms=16
        )
        lengths = torch.full((len(tables),), sum(tokens), dtype=torch.int32)
        pool.planner(capacity=capacity).update(tables, lengths)


def test_a_failed_growth_leaves_a_planner_that_plans(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = Branches(16, 512)
    planner = pool.planner()
    tables, lengths = decode_tables(6, 3, 2)

    def no_memory(*args: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr("tts_kernels.plans.device_planner._Stage", no_memory)
        with pytest.raises(MemoryError):
            planner.update(tables, lengths)
    for step in range(3):
        pool.check(
            planner.update(tables, lengths + step),
            tables,
            lengths + step,
            torch.ones(6, dtype=torch.int32),
        )


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"num_kv_heads": 0}, ValueError, "num_kv_heads: got 0"),
        ({"num_q_heads": 7, "num_kv_heads": 3}, ValueError, "num_q_heads: got 7, expected a multiple"),
        ({"num_q_heads": 1, "num_kv_heads": 2}, ValueError, "num_q_heads: got 1, expected a multiple"),
        ({"num_pages": -64}, ValueError, "num_pages: got -64"),
        ({"page_size": 16.0}, TypeError, r"page_size: got 16\.0"),
    ],
)
def test_bad_capacities(change: dict[str, int], error: type[Exception], message: str) -> None:
    good = {"num_q_heads": 4, "num_kv_heads": 2, "num_pages": 64, "page_size": 16}
    with pytest.raises(error, match=message):
        WorkCapacity.for_queries(8, **(good | change))
    with pytest.raises(ValueError, match="num_queries: got -5"):
        WorkCapacity.for_queries(-5, **good)


def test_fixed_capacity_keeps_its_memory_and_its_grid() -> None:
    pool = Branches(16, 4096)
    capacity = WorkCapacity.for_queries(8, num_q_heads=2, num_kv_heads=1, num_pages=4096, page_size=16)
    planner = pool.planner(capacity=capacity)
    first = planner.update(*decode_tables(8, 20, 4))
    second = planner.update(*decode_tables(3, 5, 1))
    assert first.work.data_ptr() == second.work.data_ptr()
    assert first.partials.data_ptr() == second.partials.data_ptr()
    assert (
        (first.num_items, first.num_merges) == (second.num_items, second.num_merges) == (capacity.items, 16)
    )


def test_outgrown_capacity_leaves_the_plan_as_it_was() -> None:
    pool = Branches(16, 4096)
    planner = pool.planner(capacity=WorkCapacity(16, 16, 64, 256, 64))
    tables, lengths = decode_tables(4, 10, 2)
    plan = planner.update(tables, lengths)
    before = plan.work.clone()
    with pytest.raises(CapacityError, match=r"capacity: got room for 16 items, .* need .* 17 queries"):
        planner.update(*decode_tables(17, 1, 1))
    assert torch.equal(plan.work, before)
    pool.check(planner.update(tables, lengths + 1), tables, lengths + 1, torch.ones(4, dtype=torch.int32))
    assert planner.advanced


def test_a_tight_capacity_makes_do_with_fewer_partials() -> None:
    pool = Branches(16, 4096)
    tables, lengths = decode_tables(4, 2000, 2)
    ones = torch.ones(4, dtype=torch.int32)
    roomy = pool.planner().update(tables, lengths)
    assert parts(roomy)["header"][4] > 16
    tight = pool.planner(capacity=WorkCapacity(16, 16, 16, 16384, 16)).update(tables, lengths)
    pool.check(tight, tables, lengths, ones)


def test_workspace_of_the_caller() -> None:
    pool = Branches(16, 4096)
    capacity = WorkCapacity(64, 16, 64, 256, 64)
    size = capacity.workspace_bytes(1, HEAD_DIM)
    workspace = torch.full((size + 64,), 255, dtype=torch.uint8)
    plan = pool.planner(capacity=capacity, workspace=workspace).update(*decode_tables(4, 10, 2))
    begin, end = workspace.data_ptr(), workspace.data_ptr() + size
    for tensor in (plan.work, plan.partials):
        assert begin <= tensor.data_ptr()
        assert tensor.data_ptr() + 4 * tensor.numel() <= end
    assert plan.work.data_ptr() + 4 * plan.work.numel() <= plan.partials.data_ptr()
    assert (workspace[size:] == 255).all()
    with pytest.raises(ValueError, match=rf"workspace: got {size - 1} bytes .* expected at least {size}"):
        pool.planner(capacity=capacity, workspace=workspace[: size - 1])
    with pytest.raises(TypeError, match=r"workspace: got torch\.float32"):
        pool.planner(capacity=capacity, workspace=workspace.view(torch.float32))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"num_q_heads": 3}, ValueError, "num_q_heads: got 3, expected a multiple of num_kv_heads = 2"),
        ({"head_dim": 64.0}, TypeError, r"head_dim: got 64\.0"),
        ({"page_size": 0}, ValueError, "page_size: got 0"),
        ({"dtype": "bfloat16"}, TypeError, r"dtype: got bfloat16, expected torch\.float32"),
        ({"dtype": torch.int16}, TypeError, r"dtype: got torch\.int16"),
        ({"head_dim": 1000}, ValueError, "head_dim: got 1000"),
        ({"device": "cuda:99"}, ValueError, "device: got 'cuda:99'"),
        ({"device": "meta"}, ValueError, "device: got 'meta', expected cpu or cuda"),
        ({"capacity": (16,) * 5}, TypeError, "capacity: got tuple, expected a WorkCapacity"),
        ({"capacity": WorkCapacity(16.0, 16, 16, 16, 16)}, TypeError, r"capacity\.items: got 16\.0"),
        ({"workspace": torch.empty(64, dtype=torch.uint8)}, ValueError, "workspace: .* without a capacity"),
        ({"num_pages": 2**28}, ValueError, "num_pages: got 268435456"),
        ({"capacity": WorkCapacity(16, 16, 16, 16, 8)}, ValueError, r"capacity\.partials: got 8"),
    ],
)
def test_bad_options(change: dict[str, object], error: type[Exception], message: str) -> None:
    good = {"num_q_heads": 4, "num_kv_heads": 2, "head_dim": 64, "page_size": 16, "num_pages": 64}
    with pytest.raises(error, match=message):
        DevicePlanner(**(good | {"dtype": torch.bfloat16, "device": "cpu"} | change))


@pytest.mark.parametrize(
    ("tables", "lengths", "query_lens", "message"),
    [
        ([[0, 64]], [17], [1], r"block_tables\[0, 1\]: got 64, expected a page id below 64"),
        ([[0, -1]], [17], [1], r"block_tables\[0, 1\]: got -1"),
        ([[-1, 1]], [17], [2], r"block_tables\[0, 0\]: got -1"),
        ([[-2, 1]], [17], [1], r"block_tables\[0, 0\]: got -2"),
        ([[0, 1]], [33], [1], r"lengths\[0\]: got 33"),
        ([[0, 1]], [5], [6], r"query_lens\[0\]: got 6"),
        ([[0, 1]], [5, 5], [1, 1], "lengths: got"),
        ([[0, 1]], [0], None, r"lengths\[0\]: got 0, expected at least 1"),
    ],
)
def test_bad_tables(
    tables: list[list[int]], lengths: list[int], query_lens: list[int] | None, message: str
) -> None:
    planner = Branches(16, 64).planner()
    plan = planner.update(*decode_tables(2, 3, 2))
    before = plan.work.clone()
    with pytest.raises(ValueError, match=message):
        planner.update(*(a and torch.tensor(a, dtype=torch.int32) for a in (tables, lengths, query_lens)))
    assert torch.equal(plan.work, before)


def test_what_outgrows_its_buffers_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """By a library logger that is silent unless an application asks."""
    assert [type(handler) for handler in logging.getLogger("tts_kernels").handlers] == [logging.NullHandler]
    planner = Branches(page_size=16, num_pages=400).planner()
    tables = torch.arange(400, dtype=torch.int32).view(40, 10)
    with caplog.at_level(logging.INFO, logger="tts_kernels"):
        planner.update(tables[:1], torch.tensor([9], dtype=torch.int32))
        assert not caplog.records
        planner.update(tables, torch.full((40,), 160, dtype=torch.int32))
    (record,) = caplog.records
    assert record.name == "tts_kernels.plans.device_planner"
    assert str(planner.capacity) in record.getMessage()


def test_own_exceptions_have_one_base() -> None:
    tree = KVTree(1)
    with pytest.raises(OutOfPagesError) as full:
        tree.append([tree.create()], [[1] * 40])
    planner = Branches(page_size=16, num_pages=40).planner(capacity=WorkCapacity(*[16] * 5), max_columns=1)
    with pytest.raises(CapacityError) as outgrown:
        planner.update(torch.zeros((1, 2), dtype=torch.int32), torch.tensor([30], dtype=torch.int32))
    assert isinstance(full.value, TTSError)
    assert isinstance(full.value, RuntimeError)
    assert isinstance(outgrown.value, TTSError)
    assert isinstance(outgrown.value, ValueError)
