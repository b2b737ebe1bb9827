"""Attention sinks against the float64 reference: on packed pages at all levels, on plain pages."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from attention_cases import Forest, forests, make_case, random_cases, random_options
from attention_checks import FAMILY, GROUPS, HEAD_DIMS, LEVELS, assert_close, check, same_bits
from hypothesis import given, settings
from hypothesis import strategies as st
from paged_cases import make_paged_case
from torch import Tensor

from tts_kernels import Selection, WorkCapacity, _core, tree_attention

pytestmark = pytest.mark.usefixtures("one_thread")
STORED = pytest.mark.parametrize("kv_dtype", [None, torch.int8], ids=["pages", "int8 pages"])
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])


def drawn_sinks(case: Forest, seed: int = 0) -> Tensor:
    """Some of nothing, some as large as a token's logit, one beyond all of them."""
    heads = case.q.shape[1]
    sinks = 3 * torch.randn(heads, generator=torch.Generator().manual_seed(seed))
    sinks[heads // 2] = -torch.inf
    sinks[-1] = 40.0
    return sinks


def drawn_selection(case: Forest, columns: int, seed: int = 0) -> Tensor:
    """bool [num_kv_heads, T, columns]; some queries read nothing."""
    shape = (case.k_slots.shape[1], case.q.shape[0], columns)
    chosen = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.4
    chosen[:, ::5] = False
    return chosen


@pytest.mark.parametrize("level", LEVELS)
@STORED
@settings(max_examples=8)
@given(data=st.data(), options=random_options())
def test_random_forests(level: str, kv_dtype: torch.dtype | None, data: Any, options: dict[str, Any]) -> None:
    case = data.draw(random_cases(head_dims=HEAD_DIMS, groups=GROUPS, longest=1200, kv_dtype=kv_dtype))
    check(case, level, **options, sinks=drawn_sinks(case))


@pytest.mark.parametrize("level", LEVELS)
@STORED
@DTYPES
def test_with_selections_and_masses(level: str, kv_dtype: torch.dtype | None, dtype: torch.dtype) -> None:
    """A query that reads no page is its sink alone."""
    case = make_case([300, 311, 40], [(0, 0), (0, 296), (0, 0)], [3, 12, 2], dtype=dtype, kv_dtype=kv_dtype)
    _core.set_cpu_isa(level)
    plan, sinks = case.plan(), drawn_sinks(case)
    chosen = drawn_selection(case, plan.max_columns)
    selection = Selection.from_bools(chosen)
    out, lse, mass = case.pool.attend_with_mass(0, case.q, plan, selection=selection, sinks=sinks)
    expected = case.expected_with_mass(chosen=chosen, sinks=sinks)
    assert_close(case, level, (out, lse), expected[:2])
    torch.testing.assert_close(mass.double(), expected[2], atol=2e-5, rtol=0)
    assert (out[::5] == 0).all()
    torch.testing.assert_close(lse[::5], sinks.expand_as(lse[::5]), rtol=1e-6, atol=0)


@pytest.mark.parametrize("level", LEVELS)
@STORED
def test_a_sink_of_nothing_changes_no_bit(level: str, kv_dtype: torch.dtype | None) -> None:
    _core.set_cpu_isa(level)
    case = make_case(**FAMILY, group=3, kv_dtype=kv_dtype)
    none = torch.full((case.q.shape[1],), -torch.inf)
    assert same_bits(case.attend(sinks=none), case.attend())
    plan = case.plan()
    with_none = case.pool.attend_with_mass(0, case.q, plan, sinks=none)
    assert all(map(torch.equal, with_none, case.pool.attend_with_mass(0, case.q, plan)))


@pytest.mark.parametrize("sink", [-300.0, -30.0, 300.0, 3e4])
def test_sinks_far_from_the_logits(sink: float) -> None:
    case = make_case([40, 47], [(0, 0), (0, 32)], [1, 5])
    check(case, LEVELS[0], sinks=torch.full((4,), sink))


@pytest.mark.parametrize("level", LEVELS)
@STORED
@DTYPES
def test_bits_do_not_depend_on_the_batch(
    level: str, kv_dtype: torch.dtype | None, dtype: torch.dtype
) -> None:
    """Siblings, blocks of queries, threads that share the chunks of a path."""
    _core.set_cpu_isa(level)
    case = make_case(**FAMILY, group=3, dtype=dtype, kv_dtype=kv_dtype)
    sinks = drawn_sinks(case)
    out, lse = case.attend(sinks=sinks)
    begin = 0
    for branch, count in enumerate(FAMILY["query_lens"]):
        rows = slice(begin, begin + count)
        assert same_bits(case.only(branch).attend(sinks=sinks), (out[rows], lse[rows])), branch
        begin += count
    for threads, query_block in ((2, 5), (4, 256)):
        torch.set_num_threads(threads)
        assert same_bits(case.attend(query_block, sinks=sinks), (out, lse))
        assert same_bits(case.only(5).attend(sinks=sinks), (out[19:59], lse[19:59]))


def merged(parts: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Results over parts of a context, by their log-sum-exps."""
    lses = torch.stack([lse.double() for _, lse in parts])
    weights = lses.softmax(0).nan_to_num(0.0)[..., None]
    return sum(w * out.double() for w, (out, _) in zip(weights, parts, strict=True)), lses.logsumexp(0)


def test_sinks_of_one_part_count_once_where_parts_are_merged() -> None:
    case = make_case([300, 311], [(0, 0), (0, 296)], [3, 12])
    plan, sinks = case.plan(), drawn_sinks(case)
    first = drawn_selection(case, plan.max_columns)
    parts = [
        case.pool.attend(0, case.q, plan, selection=Selection.from_bools(chosen), sinks=of_part)
        for chosen, of_part in ((first, sinks), (~first, None))
    ]
    out, lse = merged(parts)
    expected, expected_lse = case.expected(sinks=sinks)
    torch.testing.assert_close(out, expected, atol=2e-5, rtol=0)
    torch.testing.assert_close(lse, expected_lse, atol=2e-5, rtol=0)


def test_opcheck() -> None:
    case = make_case([40, 35], [(0, 0), (0, 32)], [2, 1])
    plan = case.plan()
    args = (case.q, *case.pool.layer(0), plan.buffer, 0.125, 16, 5.0, None, None)
    torch.library.opcheck(torch.ops.tts_kernels.tree_attention.default, (*args, torch.zeros(4)))
    with_mass = torch.ops.tts_kernels.tree_attention_with_mass.default
    torch.library.opcheck(with_mass, (*args, plan.max_columns, torch.zeros(4)))


@pytest.mark.parametrize(
    ("sinks", "error", "message"),
    [
        (torch.zeros(3), ValueError, r"sinks: got shape \[3\], expected \[num_q_heads\] = \[4\]"),
        (torch.zeros(4, 1), ValueError, r"sinks: got shape \[4, 1\]"),
        (torch.zeros(8)[::2], ValueError, "sinks: got strides"),
        (torch.zeros(4).double(), TypeError, "sinks: got torch.float64, expected torch.float32"),
        (torch.zeros(4).bfloat16(), TypeError, "sinks: got torch.bfloat16, expected torch.float32"),
        ([0.0] * 4, TypeError, "sinks: got list"),
        (torch.zeros(4, device="meta"), ValueError, "sinks: got a tensor on meta"),
    ],
    ids=str,
)
def test_sinks_that_do_not_fit(sinks: Any, error: type[Exception], message: str) -> None:
    case = make_case([40], [(0, 0)], [2])
    with pytest.raises(error, match=message):
        tree_attention(case.q, *case.pool.layer(0), case.plan(), sinks=sinks)


# -- plain pages

SPLIT = ([300, 311, 290, 320], [(0, 0), (0, 296), (0, 280), (2, 290)], [1, 3, 1, 2])


@settings(max_examples=6)
@given(
    forest=forests(branches=5, longest=300, most_queries=40),
    group=st.sampled_from([1, 3, 4]),
    dtype=st.sampled_from([torch.float32, torch.float16]),
    options=random_options(widest=200, largest_scale=0.3),
)
def test_random_forests_on_plain_pages(
    device: torch.device, forest: Any, group: int, dtype: torch.dtype, options: dict[str, Any]
) -> None:
    case = make_paged_case(*forest, group=group, dtype=dtype, device=device)
    case.check(**options, sinks=drawn_sinks(case).to(device))


@pytest.mark.parametrize("window", [None, 40])
def test_split_paths_on_plain_pages(device: torch.device, window: int | None) -> None:
    case = make_paged_case(*SPLIT, group=3, device=device, kv_heads=1)
    plan = case.plan()
    assert plan.num_merges > 0
    sinks = drawn_sinks(case).to(device)
    case.check(plan, window=window, sinks=sinks)
    mass = case.mass(plan, window=window, sinks=sinks)
    expected = case.expected_with_mass(window=window, sinks=sinks.cpu())[2]
    torch.testing.assert_close(mass.cpu().double(), expected, atol=2e-5, rtol=0)


def test_chosen_pages_on_plain_pages(device: torch.device) -> None:
    """A query that reads no page is its sink alone."""
    case = make_paged_case(*SPLIT, group=3, device=device, kv_heads=1)
    plan, sinks = case.plan(), drawn_sinks(case)
    chosen = drawn_selection(case, plan.max_columns)
    mask = Selection.from_bools(chosen).mask.to(device)
    out, lse = case.attend(plan, mask=mask, sinks=sinks.to(device))
    expected, expected_lse, expected_mass = case.expected_with_mass(chosen=chosen, sinks=sinks)
    torch.testing.assert_close(out.cpu().double(), expected, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(lse.cpu().double(), expected_lse, atol=2e-5, rtol=1e-6)
    mass = case.mass(plan, mask=mask, sinks=sinks.to(device))
    torch.testing.assert_close(mass.cpu().double(), expected_mass, atol=2e-5, rtol=0)


def test_rows_beyond_the_plan_have_no_sink(device: torch.device) -> None:
    case = make_paged_case(*SPLIT, device=device)
    padded = replace(case, q=torch.cat([case.q, torch.full_like(case.q[:1], torch.nan).expand(5, -1, -1)]))
    plan = case.plan(capacity=WorkCapacity(64, 16, 128, 128, 512))
    out, lse = padded.attend(plan, sinks=torch.ones(4, device=device))
    assert (out[7:] == 0).all()
    assert (lse[7:] == -torch.inf).all()


def test_the_operator_on_plain_pages(device: torch.device) -> None:
    case = make_paged_case(*SPLIT, device=device)
    plan, sinks = case.plan(), drawn_sinks(case).to(device)
    found = tree_attention(case.q, case.k_pages, case.v_pages, plan, sinks=sinks)
    assert all(map(torch.equal, found, case.attend(plan, sinks=sinks)))
    with pytest.raises(ValueError, match=r"sinks: got shape \[3\]"):
        tree_attention(case.q, case.k_pages, case.v_pages, plan, sinks=sinks[:3])
