"""Scoring, choosing and reading pages on plain pages, in Triton's interpreter or on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from paged_cases import PagedCase, make_paged_case
from torch import Tensor

from tts_kernels import (
    CapacityError,
    DevicePlan,
    WorkCapacity,
    reference,
    score_pages,
    select_pages,
    select_top_pages,
    tree_attention,
    tree_attention_with_mass,
)
from tts_kernels.backends import choice
from tts_kernels.backends.launch import SelectOptions, WorkLayout
from tts_kernels.plans.selection import Selection

pytestmark = pytest.mark.usefixtures("one_thread")

# In depth-first order, as reference.select_top_pages expects it. Branches that share whole pages and parts of
# pages; several queries.
FAMILY = ([33, 70, 85], [(0, 0), (0, 30), (1, 60)], [3, 2, 1])
# Two trees: branches that share long runs and fork from each other, and two more from another root.
FOREST = (
    [200, 196, 211, 190, 60, 64],
    [(0, 0), (0, 190), (1, 180), (0, 100), (0, 0), (4, 40)],
    [1, 3, 1, 2, 1, 1],
)


def in_order(case: PagedCase, plan: DevicePlan) -> bool:
    """Whether the branches are depth-first."""
    order = plan.work[WorkLayout.of(plan.capacity).query_order :][: plan.num_queries]
    return order.tolist() == sorted(order.tolist())


def with_holes(case: PagedCase) -> PagedCase:
    """A page gone from all branches of a tree, and two from one of them, whose path parts there."""
    tables = case.tables.clone()
    tables[tables[:, 2] == tables[0, 2], 2] = -1
    tables[1, 4:6] = -1
    return replace(case, tables=tables)


def random_summaries(case: PagedCase, vectors: int) -> Tensor:
    """NaN for pages that no branch has."""
    num_pages, heads, _, head_dim = case.k_pages.shape
    generator = torch.Generator().manual_seed(3)
    summaries = torch.randn((num_pages, heads, vectors, head_dim), generator=generator).sort(dim=2).values
    nobody = torch.ones(num_pages, dtype=torch.bool)
    nobody[case.tables[case.tables >= 0].long()] = False
    summaries[nobody] = torch.nan
    return summaries.to(case.q.dtype).to(case.q.device)


def score(case: PagedCase, summaries: Tensor, plan: DevicePlan, scale: float) -> Tensor:
    scores = torch.full(
        (plan.num_kv_heads, case.q.shape[0], plan.max_columns), torch.nan, device=case.q.device
    )
    kernel = choice.kernel("score_pages", case.k_pages)
    kernel(case.q, summaries, plan.launch, plan.page_size, scale, scores)
    return scores


def check_scores(case: PagedCase, vectors: int) -> None:
    summaries = random_summaries(case, vectors)
    plan = case.plan()
    found = score(case, summaries, plan, 0.2)
    expected = reference.score_pages(
        case.q.cpu(),
        summaries.cpu(),
        case.tables,
        case.lengths,
        case.query_lens,
        page_size=plan.page_size,
        scale=0.2,
    )
    torch.testing.assert_close(found.cpu().double(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("share", [None, 0.5])
def test_holes_are_neither_scored_nor_read(device: torch.device, share: float | None) -> None:
    case = with_holes(make_paged_case(*FOREST, device=device, page_size=8, kv_heads=1))
    check_attention(case, share)
    check_scores(case, 2)


@pytest.mark.parametrize("vectors", [1, 2])
@pytest.mark.parametrize(
    ("forest", "options"),
    [
        (FAMILY, {"head_dim": 128, "dtype": torch.bfloat16, "group": 4}),
        (FAMILY, {"head_dim": 80, "page_size": 1}),
        (FOREST, {"head_dim": 64, "page_size": 8, "group": 3}),
        (FOREST, {"head_dim": 256, "dtype": torch.float16, "page_size": 24, "group": 1}),
        (([90, 90], [(0, 0), (0, 20)], [70, 1]), {"group": 2, "kv_heads": 1, "dtype": torch.bfloat16}),
    ],
)
def test_scores(device: torch.device, forest: object, options: dict[str, object], vectors: int) -> None:
    check_scores(make_paged_case(*forest, device=device, **options), vectors)  # type: ignore[misc]


def test_scores_of_rows_beyond_the_plan(device: torch.device) -> None:
    """Behind a fixed capacity P is the most there may be, and rows of padding are 0."""
    case = make_paged_case(*FAMILY, device=device)
    summaries = random_summaries(case, 1)
    capacity = WorkCapacity(32, 16, 64, 64, 128)
    plan = case.plan(capacity=capacity, max_columns=9)
    expected = score(case, summaries, case.plan(), 0.2)
    padded = replace(case, q=torch.cat([case.q, torch.full_like(case.q[:1], torch.nan).expand(12, -1, -1)]))
    scores = score(padded, summaries, plan, 0.2)
    assert scores.shape == (2, 18, 9)
    torch.testing.assert_close(scores[:, :6, : expected.shape[2]], expected)
    assert (scores[:, :6, expected.shape[2] :] == 0).all()
    assert (scores[:, 6:16] == 0).all()
    assert scores[:, 16:].isnan().all()


def select(case: PagedCase, scores: Tensor, plan: DevicePlan, options: SelectOptions) -> Tensor:
    """bool [num_kv_heads, T, P]."""
    heads, rows, columns = scores.shape
    mask = torch.full((heads, rows, -(-columns // 32)), -1, dtype=torch.int32, device=scores.device)
    kernel = choice.kernel("select_top_pages", case.k_pages)
    kernel(scores, plan.launch, plan.page_size, options, mask)
    return Selection(mask).to_bools(columns).cpu()


def check_selection(case: PagedCase, scores: Tensor, plan: DevicePlan, options: SelectOptions) -> None:
    found = select(case, scores.to(case.q.device), plan, options)
    budget = options.budget if isinstance(options.budget, int) else options.budget.tolist()
    arguments = (case.tables, case.lengths, case.query_lens)
    expected = reference.select_top_pages(
        scores,
        *arguments,
        budget,
        top_p=options.top_p,
        sink=options.sink,
        recent=options.recent,
        tail_begin=None if options.tail_begin is None else options.tail_begin.tolist(),
        groups=None if options.groups is None else options.groups.tolist(),
        page_size=plan.page_size,
    )
    seen = torch.zeros(expected.shape[1:], dtype=torch.bool)
    row = 0
    for length, count in zip(case.lengths.tolist(), case.query_lens.tolist(), strict=True):
        for position in range(length - count, length):
            seen[row, : position // plan.page_size + 1] = True
            row += 1
    assert torch.equal(found & seen, expected & seen)


def random_scores(case: PagedCase, plan: DevicePlan, generator: torch.Generator, ties: bool) -> Tensor:
    """Shares of random pages; with ties, only a few values, zero among them."""
    shape = (plan.num_kv_heads, case.q.shape[0], plan.max_columns)
    scores = torch.rand(shape, generator=generator) ** 4
    if ties:
        scores = (scores * 5).floor()
    return scores / scores.sum(2, keepdim=True).clamp(min=1)


@settings(max_examples=8)
@given(
    forest=st.sampled_from([FAMILY, FOREST]),
    page_size=st.sampled_from([4, 16, 64]),
    budget=st.integers(1, 16) | st.sampled_from(["each"]),
    top_p=st.none() | st.sampled_from([0.25, 0.5, 0.875]),
    sink=st.integers(0, 2),
    recent=st.integers(0, 2),
    has_tails=st.booleans(),
    num_groups=st.none() | st.integers(1, 4),
    ties=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_selection_is_the_reference_s(
    device: torch.device,
    forest: tuple[list[int], list[tuple[int, int]], list[int]],
    page_size: int,
    budget: int | str,
    top_p: float | None,
    sink: int,
    recent: int,
    has_tails: bool,
    num_groups: int | None,
    ties: bool,
    seed: int,
) -> None:
    """Tails begin anywhere, and queries of a group lie anywhere in the forest."""
    generator = torch.Generator().manual_seed(seed)
    case = make_paged_case(*forest, page_size=page_size, device=device, head_dim=16, group=1, seed=seed)
    plan = case.plan()
    assert in_order(case, plan)
    rows = case.q.shape[0]

    def each(low: int, high: int) -> Tensor:
        return torch.randint(low, high, (rows,), generator=generator, dtype=torch.int32).to(device)

    pages = each(1, 20) if isinstance(budget, str) else budget
    tails = each(0, plan.max_columns + 1) if has_tails else None
    groups = None if num_groups is None else each(0, num_groups)
    scores = random_scores(case, plan, generator, ties)
    options = SelectOptions(pages, top_p, sink, recent, tails, groups)
    check_selection(case, scores, plan, options)


def random_choice(case: PagedCase, plan: DevicePlan, share: float) -> Tensor:
    """bool [num_kv_heads, T, P]; bits beyond what a query sees are set too."""
    generator = torch.Generator().manual_seed(5)
    shape = (plan.num_kv_heads, case.q.shape[0], plan.max_columns)
    return torch.rand(shape, generator=generator) < share


def check_attention(case: PagedCase, share: float | None, **options: float | None) -> None:
    """Attention over a random choice of pages, all of them or none, and its masses."""
    plan = case.plan()
    chosen = None if share is None else random_choice(case, plan, share)
    mask = None if chosen is None else Selection.from_bools(chosen).mask.to(case.q.device)
    expected_out, expected_lse, expected_mass = case.expected_with_mass(chosen, **options)
    out, lse = case.attend(plan, mask=mask, **options)
    atol, rtol = (2e-5, 1e-5) if case.q.dtype == torch.float32 else (4e-3, 2**-7)
    torch.testing.assert_close(out.cpu().double(), expected_out, rtol=rtol, atol=atol)
    torch.testing.assert_close(lse.cpu().double(), expected_lse, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(
        case.mass(plan, mask=mask, **options).cpu().double(), expected_mass, rtol=1e-3, atol=1e-5
    )


@pytest.mark.parametrize("share", [None, 0.0, 0.3, 1.0])
@pytest.mark.parametrize(
    ("forest", "options"),
    [
        (FOREST, {"page_size": 8, "group": 3, "dtype": torch.bfloat16, "layout": "NHD"}),
        (FAMILY, {"page_size": 24, "head_dim": 80, "kv_heads": 1}),
        (([150, 190], [(0, 0), (0, 150)], [130, 40]), {"kv_heads": 1, "dtype": torch.float16}),
    ],
)
def test_attention_over_chosen_pages(
    device: torch.device, forest: object, options: dict[str, object], share: float | None
) -> None:
    check_attention(make_paged_case(*forest, device=device, **options), share)  # type: ignore[misc]


def test_attention_over_chosen_pages_with_a_window_and_a_cap(device: torch.device) -> None:
    case = make_paged_case(*FOREST, device=device, kv_heads=1)
    check_attention(case, 0.5, window=70, logits_soft_cap=5.0, scale=0.2)


@pytest.mark.parametrize("together", [False, True])
def test_operators(device: torch.device, together: bool) -> None:
    """From summaries to attention, as a decoder calls it, against the references called in order."""
    case = make_paged_case(*FAMILY, device=device, page_size=8)
    plan = case.plan()
    summaries = random_summaries(case, 2)
    scores = score_pages(case.q, summaries, plan)
    rows = torch.arange(len(case.q), dtype=torch.int32, device=device)
    tails, groups = rows + 6, rows % 2 if together else None
    selection = select_pages(case.q, summaries, plan, 4, tail_begin=tails, groups=groups)
    arguments = (case.tables, case.lengths, case.query_lens)
    lists = {"tail_begin": tails.tolist(), "groups": None if groups is None else groups.tolist()}
    chosen = reference.select_top_pages(scores.cpu(), *arguments, 4, **lists, page_size=8)
    found = selection.to_bools(plan.max_columns).cpu()
    visible = scores.cpu() > 0
    assert torch.equal(found & visible, chosen & visible)
    expected = case.expected_with_mass(chosen)
    results = tree_attention_with_mass(case.q, case.k_pages, case.v_pages, plan, selection=selection)
    for result, wanted in zip(results, expected, strict=True):
        torch.testing.assert_close(result.cpu().double(), wanted, rtol=1e-4, atol=2e-5)


def test_refused(device: torch.device) -> None:
    case = make_paged_case(*FAMILY, device=device)
    plan = case.plan()
    summaries = random_summaries(case, 1)
    scores = score_pages(case.q, summaries, plan)
    rows = case.q.shape[0]
    narrow = Selection(torch.zeros((2, rows, 0), dtype=torch.int32, device=device))
    flat = Selection(torch.zeros((2, rows - 1, 1), dtype=torch.int32, device=device))
    tensors = (case.q, case.k_pages, case.v_pages, plan)
    refused: list[tuple[type[Exception], str, Callable[[], object]]] = [
        (ValueError, "summaries: got shape", lambda: score_pages(case.q, summaries[:, :1], plan)),
        (TypeError, "q: got torch.bfloat16", lambda: score_pages(case.q.bfloat16(), summaries, plan)),
        (ValueError, "q: got rows = 2", lambda: score_pages(case.q[:2], summaries, plan)),
        (ValueError, "scale: got 0", lambda: score_pages(case.q, summaries, plan, scale=0.0)),
        (ValueError, "budget: got 0", lambda: select_top_pages(scores, plan, 0)),
        (ValueError, "budget: got shape", lambda: select_top_pages(scores, plan, narrow.mask[0, 0])),
        (ValueError, "scores: got shape", lambda: select_top_pages(scores[:, :, :2].contiguous(), plan, 1)),
        (ValueError, "top_p: got 2", lambda: select_top_pages(scores, plan, 1, top_p=2.0)),
        (ValueError, "groups: got shape", lambda: select_top_pages(scores, plan, 1, groups=flat.mask[0, 0])),
        (
            TypeError,
            "tail_begin: got torch.float32",
            lambda: select_top_pages(scores, plan, 1, tail_begin=case.q[:, 0, 0]),
        ),
        (ValueError, "selection.mask: got 0 words", lambda: tree_attention(*tensors, selection=narrow)),
        (ValueError, "selection.mask: got shape", lambda: tree_attention(*tensors, selection=flat)),
    ]
    for error, message, call in refused:
        with pytest.raises(error, match=message):
            call()
    with pytest.raises(CapacityError, match="max_columns: got 2"):
        case.plan(capacity=WorkCapacity(32, 16, 64, 64, 128), max_columns=2)
    with pytest.raises(ValueError, match="max_columns: got 2 without a capacity"):
        case.planner(max_columns=2)


def test_opcheck(device: torch.device) -> None:
    case = make_paged_case(*FAMILY, device=device)
    plan = case.plan()
    plan.partials.zero_()  # compared before and after, which NaN would fail
    k_pages, v_pages = case.k_pages.nan_to_num(1.0), case.v_pages.nan_to_num(1.0)
    mask = Selection.from_bools(random_choice(case, plan, 0.5)).mask.to(device)
    arguments = (case.q, k_pages, v_pages, *plan.launch, 0.125, None, None, mask, None)
    ops = torch.ops.tts_kernels
    torch.library.opcheck(ops.tree_attention_work.default, arguments)
    torch.library.opcheck(ops.tree_attention_work_with_mass.default, (*arguments, plan.max_columns))
