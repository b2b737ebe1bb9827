"""The planner for a GPU: fixed capacities, memory of the caller, refused options and tables, its log."""

from __future__ import annotations

import logging

import pytest
import torch
from work_lists import HEAD_DIM, Branches, decode_tables, parts

from tts_kernels import CapacityError, DevicePlanner, KVTree, OutOfPagesError, TTSError, WorkCapacity


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
