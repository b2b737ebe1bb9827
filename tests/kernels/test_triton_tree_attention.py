"""Attention by a work list against the float64 reference, in Triton's interpreter or on a GPU."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from attention_cases import forests, random_options
from hypothesis import given, settings
from hypothesis import strategies as st
from paged_cases import LAYOUTS, PagedCase, far_pages, in_layout, make_paged_case
from torch import Tensor

from tts_kernels import DevicePlan, WorkCapacity, tree_attention
from tts_kernels.backends import choice
from tts_kernels.backends.launch import AttentionOptions, WorkLaunch, WorkLayout

pytestmark = pytest.mark.usefixtures("one_thread")

DTYPES = [torch.float32, torch.float16, torch.bfloat16]

# Branches that share whole pages and parts of pages; two queries and one.
FAMILY = ([70, 85, 33], [(0, 0), (0, 60), (1, 30)], [2, 1, 3])
# Branches whose long shared parts are items of their own.
SPLIT = ([300, 311, 290, 320], [(0, 0), (0, 296), (0, 280), (2, 290)], [1, 3, 1, 2])


def heights(plan: DevicePlan) -> set[int]:
    count = int(plan.work[0])
    return set(plan.work[16 : 16 + 8 * count].view(count, 8)[:, 7].tolist())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", [16, 64, 72, 80, 96, 128, 192, 256])
def test_head_dims(device: torch.device, dtype: torch.dtype, head_dim: int) -> None:
    make_paged_case(*FAMILY, head_dim=head_dim, dtype=dtype, device=device, kv_heads=1).check()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("page_size", [1, 8, 16, 32, 64, 128, 24])
def test_page_sizes_and_layouts(device: torch.device, page_size: int, layout: str) -> None:
    case = make_paged_case(
        *FAMILY, page_size=page_size, layout=layout, dtype=torch.bfloat16, device=device, group=1
    )
    case.check()


@pytest.mark.parametrize("kv_heads", [1, 2])
@pytest.mark.parametrize("group", [1, 2, 3, 4, 7, 8, 16, 32])
def test_gqa_ratios(device: torch.device, group: int, kv_heads: int) -> None:
    make_paged_case(
        [40, 47], [(0, 0), (0, 32)], [1, 5], group=group, kv_heads=kv_heads, device=device
    ).check()


@pytest.mark.parametrize("window", [1, 17, 100])
@pytest.mark.parametrize("logits_soft_cap", [None, 5.0])
def test_windows_and_soft_caps(
    device: torch.device, window: int | None, logits_soft_cap: float | None
) -> None:
    case = make_paged_case([300, 310], [(0, 0), (0, 290)], [1, 20], device=device, kv_heads=1)
    case.check(window=window, logits_soft_cap=logits_soft_cap, scale=0.2)


@pytest.mark.parametrize("dtype", DTYPES)
def test_soft_cap_of_large_logits(device: torch.device, dtype: torch.dtype) -> None:
    make_paged_case(*FAMILY, dtype=dtype, device=device).check(logits_soft_cap=0.5, scale=1.0)


@pytest.mark.parametrize("head_dim", [64, 256])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tall_tiles(device: torch.device, head_dim: int, dtype: torch.dtype) -> None:
    """Prompts and forced tokens: many rows over one run of pages, causal among themselves."""
    case = make_paged_case(
        [150, 190], [(0, 0), (0, 150)], [130, 40], head_dim=head_dim, dtype=dtype, device=device, kv_heads=1
    )
    plan = case.plan()
    assert max(heights(plan)) == (128 if head_dim == 64 else 64)
    case.check(plan)
    case.check(plan, window=33)


@pytest.mark.parametrize("window", [None, 40])
def test_split_paths_are_merged(device: torch.device, window: int | None) -> None:
    """With a window, rows see nothing of the first items of their path: partials of (0, -inf)."""
    case = make_paged_case(*SPLIT, group=3, device=device, kv_heads=1)
    plan = case.plan()
    assert plan.num_merges > 0
    case.check(plan, window=window)
    first = case.attend(plan, window=window)
    assert all(map(torch.equal, first, case.attend(plan, window=window)))


def test_truncated_siblings_share_a_page(device: torch.device) -> None:
    """A branch ends inside a page in which another continues."""
    make_paged_case(
        [64, 50, 33, 64], [(0, 0), (0, 50), (0, 33), (0, 64)], [1, 1, 2, 3], device=device, group=4
    ).check()


@settings(max_examples=10)
@given(
    forest=forests(branches=5, longest=300, most_queries=40),
    shape=st.fixed_dictionaries(
        {
            "kv_heads": st.integers(1, 2),
            "group": st.sampled_from([1, 2, 3, 4, 7]),
            "head_dim": st.sampled_from([64, 80]),
            "page_size": st.sampled_from([1, 8, 16, 32]),
            "dtype": st.sampled_from(DTYPES),
            "layout": st.sampled_from(LAYOUTS),
            "seed": st.integers(0, 2**31),
        }
    ),
    options=random_options(widest=200, largest_scale=0.3),
)
def test_random_forests(
    device: torch.device, forest: Any, shape: dict[str, Any], options: dict[str, float | None]
) -> None:
    make_paged_case(*forest, **shape, device=device).check(**options)


def test_rows_beyond_the_plan(device: torch.device) -> None:
    """A fixed capacity clears them as far as it has queries; without a merge they stay as they are."""
    case = make_paged_case(*FAMILY, device=device)
    padded = replace(case, q=torch.cat([case.q, torch.full_like(case.q[:1], torch.nan).expand(12, -1, -1)]))
    for plan, cleared in (
        (case.plan(), slice(6, 6)),
        (case.plan(capacity=WorkCapacity(32, 16, 64, 64, 128)), slice(6, 16)),
    ):
        out, lse = padded.attend(plan)
        expected = case.attend(plan)
        assert torch.equal(out[:6], expected[0])
        assert torch.equal(lse[:6], expected[1])
        assert (out[cleared] == 0).all()
        assert (lse[cleared] == -torch.inf).all()
        assert out[cleared.stop :].isnan().all()
        assert lse[cleared.stop :].isnan().all()


@pytest.mark.parametrize("merged", [False, True])
def test_queries_that_q_has_no_row_for(device: torch.device, merged: bool) -> None:
    """A graph captured with a few rows, replayed after an update to more branches."""
    forest = SPLIT if merged else FAMILY
    case = make_paged_case(*forest, group=3, device=device, kv_heads=1)
    plan = case.plan(capacity=WorkCapacity(64, 16, 128, 128, 512))
    assert (int(plan.work[2]) > 0) == merged
    out, lse = case.attend(plan)
    # The second row would lie outside all memory.
    lone = case.q[:1].as_strided((1, *case.q.shape[1:]), (2**40, *case.q.stride()[1:]))
    for q in (case.q[:4], lone):
        few_out, few_lse = replace(case, q=q).attend(plan)
        assert torch.equal(few_out, out[: len(q)])
        assert torch.equal(few_lse, lse[: len(q)])


def test_a_launch_wider_than_the_plan(device: torch.device) -> None:
    """A captured graph launches for as many items and queries as later plans may have."""
    case = make_paged_case(*FAMILY, device=device)
    plan = case.plan(capacity=WorkCapacity(32, 16, 64, 64, 128))
    assert plan.num_items == 32
    assert plan.num_merges == 16
    case.check(plan)


def test_no_queries(device: torch.device) -> None:
    case = make_paged_case([40], [(0, 0)], [0], device=device)
    out, lse = tree_attention(case.q, case.k_pages, case.v_pages, case.plan())
    assert out.shape == (0, 4, 64)
    assert lse.shape == (0, 4)


def test_visible_nan_reaches_the_result(device: torch.device) -> None:
    for dtype in DTYPES:
        case = make_paged_case([40, 50], [(0, 0), (0, 0)], [1, 1], dtype=dtype, device=device)
        case.k_pages[case.tables[0, 1], :, 3] = torch.nan
        out, lse = case.attend(case.plan())
        assert out[0].isnan().all()
        assert lse[0].isnan().all()
        assert out[1].isfinite().all()


def test_the_operator_and_strided_queries(device: torch.device) -> None:
    case = make_paged_case(*FAMILY, device=device, dtype=torch.float16)
    packed = torch.zeros((6, 3, 4, 64), dtype=torch.float16, device=device)
    packed[:, 1] = case.q
    plan = case.plan()
    actual = tree_attention(packed[:, 1], case.k_pages, case.v_pages, plan, window=50, logits_soft_cap=9.0)
    expected = case.attend(plan, window=50, logits_soft_cap=9.0)
    assert all(map(torch.equal, actual, expected))


def test_keys_and_values_of_different_strides(device: torch.device) -> None:
    case = make_paged_case(*FAMILY, device=device)
    v_pages = in_layout(case.v_pages.transpose(1, 2).contiguous(), "NHD")
    odd = torch.full((*case.k_pages.shape[:3], 67), torch.nan, device=device)[..., 1:65]  # no alignment
    odd.copy_(case.k_pages)
    replace(case, k_pages=odd, v_pages=v_pages).check()


def test_offsets_beyond_int32(device: torch.device) -> None:
    k_pages, v_pages = far_pages(device)
    k, v = torch.randn((2, 5, 1, 64)).half()
    tables = torch.tensor([[1, 0]], dtype=torch.int32)
    for pages, rows in ((k_pages, k), (v_pages, v)):
        for token in range(5):
            pages[tables[0, token // 3], :, token % 3] = rows[token].to(device)
    q = torch.randn((2, 2, 64)).half()
    length, count = torch.tensor([5], dtype=torch.int32), torch.tensor([2], dtype=torch.int32)
    slots = [torch.cat([rows[3:], rows[:1], rows[:3]]).double() for rows in (k, v)]  # slot 2 is not used
    PagedCase(3, *slots, tables, length, count, q.to(device), k_pages, v_pages).check()


def merge_only(
    device: torch.device, bases: list[list[int]], partial_lse: Tensor, partial_out: Tensor
) -> tuple[Tensor, Tensor]:
    """Merges partials [partials, d] of one KV head, group 2: those of query i are bases[i] + 2 i + (0, 1)."""
    capacity = WorkCapacity(16, 16, 16, 16, partial_lse.shape[0])
    layout = WorkLayout.of(capacity)
    work = torch.full((layout.end,), -(2**20), dtype=torch.int32)
    flat = [base for query in bases for base in query]
    begin = [sum(map(len, bases[:i])) for i in range(len(bases) + 1)]
    sections = [
        (0, [0, len(bases), len(flat), 0, 0]),
        (layout.query_order, list(range(len(bases)))[::-1]),
        (layout.merge_begin, begin),
        (layout.merge_base, flat),
    ]
    for at, values in sections:
        work[at : at + len(values)] = torch.tensor(values, dtype=torch.int32)
    partials = torch.cat([partial_out.flatten(), partial_lse]).to(device)
    head_dim = partial_out.shape[1]
    q = torch.zeros((len(bases) + 1, 2, head_dim), device=device)
    pages = torch.zeros((1, 1, 16, head_dim), device=device)
    out, lse = torch.full_like(q, torch.nan), torch.full(q.shape[:2], torch.nan, device=device)
    launch = WorkLaunch(work.to(device), partials, capacity, 0, 16)
    kernel = choice.kernel("tree_attention", pages)
    kernel(q, pages, pages, launch, AttentionOptions(1.0, 0, 0.0), out, lse)
    return out.cpu(), lse.cpu()


def test_merging_empty_partials(device: torch.device) -> None:
    """Partials of nothing weigh nothing; where all are empty the result is (0, -inf)."""
    partial_out = torch.randn((16, 16))
    partial_lse = torch.randn(16) * 50
    empty = [2, 3, 6, 7, 8, 9]
    partial_out[empty], partial_lse[empty] = 0.0, -torch.inf
    # Query 0 merges 0 to 5, query 1 merges 6 to 9 (bases 4 and 6), query 2 none; q is in reverse order, with
    # a row of padding.
    out, lse = merge_only(device, [[0, 2, 4], [4, 6], []], partial_lse, partial_out)
    rows = torch.tensor([[0, 2, 4], [1, 3, 5]])
    expected_lse = partial_lse[rows].double().logsumexp(1)
    weights = partial_lse[rows].double().softmax(1)
    expected = (weights[:, :, None] * partial_out[rows].double()).sum(1)
    torch.testing.assert_close(out[2].double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(lse[2].double(), expected_lse, rtol=1e-6, atol=1e-5)
    assert (out[[1, 3]] == 0).all()
    assert (lse[[1, 3]] == -torch.inf).all()
    assert out[0].isnan().all()
    assert lse[0].isnan().all()


def op_arguments(case: PagedCase) -> tuple[object, ...]:
    plan = case.plan()
    plan.partials.zero_()  # compared before and after, which NaN would fail
    return (case.q, case.k_pages, case.v_pages, *plan.launch, 0.125, None, None)


def test_opcheck(device: torch.device) -> None:
    case = make_paged_case(*FAMILY, device=device)
    case = replace(case, k_pages=case.k_pages.nan_to_num(1.0), v_pages=case.v_pages.nan_to_num(1.0))
    torch.library.opcheck(torch.ops.tts_kernels.tree_attention_work.default, op_arguments(case))


def test_branch_invariant_bits(device: torch.device) -> None:
    """Chunks of a path, tiles of one height and the order of merging do not depend on the siblings."""
    case = make_paged_case(
        [1200, 1100, 1190, 2100],
        [(0, 0), (0, 1024), (0, 1170), (1, 1060)],
        [1, 2, 1, 1],
        device=device,
        kv_heads=1,
        group=3,
        head_dim=64,
        page_size=64,
        dtype=torch.float16,
    )
    out, lse = case.attend(case.plan(branch_invariant=True))
    case.check(case.plan(branch_invariant=True))
    begin = 0
    for branch, count in enumerate(case.query_lens.tolist()):
        alone = replace(
            case,
            tables=case.tables[branch : branch + 1],
            lengths=case.lengths[branch : branch + 1],
            query_lens=case.query_lens[branch : branch + 1],
            q=case.q[begin : begin + count],
        )
        alone_out, alone_lse = alone.attend(alone.plan(branch_invariant=True))
        assert torch.equal(alone_out, out[begin : begin + count])
        assert torch.equal(alone_lse, lse[begin : begin + count])
        begin += count
