"""Attention over int8 pages, beyond what test_tree_attention.py tries: quantization error, bad arguments."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from attention_cases import PAGE, Case, live_slots, make_case, poisoned_pool, random_cases, random_options
from attention_checks import FAMILY, GROUPS, HEAD_DIMS, LEVELS, assert_close, check, same_bits
from hypothesis import given, settings

from tts_kernels import KVPool, _core, reference, tree_attention
from tts_kernels.plans.selection import Selection

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])  # of queries
CASES = random_cases(head_dims=HEAD_DIMS, groups=GROUPS, longest=1500, kv_dtype=torch.int8)


@pytest.mark.parametrize("level", LEVELS)
@settings(max_examples=20)
@given(case=CASES, options=random_options(largest_scale=0.3))
def test_random_forests(level: str, case: Case, options: dict[str, float | None]) -> None:
    check(case, level, **options)


@pytest.mark.parametrize("level", LEVELS)
@DTYPES
def test_an_unshared_copy_gives_the_same_bits(level: str, dtype: torch.dtype) -> None:
    _core.set_cpu_isa(level)
    case = make_case(**FAMILY, group=3, dtype=dtype, kv_dtype=torch.int8)
    first, width = case.pool.num_pages, case.tables.shape[1]
    pool = poisoned_pool(torch.Generator(), first + case.tables.numel(), dtype=torch.int8)
    for own, shared in ((pool.k_pages, case.pool.k_pages), (pool.v_pages, case.pool.v_pages)):
        own[:, :first] = shared
    pool.scales[:, :first] = case.pool.scales
    tables = first + torch.arange(case.tables.numel(), dtype=torch.int32).view(-1, width)
    held = case.tables >= 0
    pool.copy(torch.stack([case.tables[held], tables[held]], dim=1))
    assert same_bits(replace(case, pool=pool, tables=tables).attend(), case.attend())


@pytest.mark.parametrize("level", LEVELS)
@DTYPES
@pytest.mark.parametrize("group", [1, 3])
def test_chosen_pages(level: str, dtype: torch.dtype, group: int) -> None:
    _core.set_cpu_isa(level)
    case = make_case(**FAMILY, group=group, dtype=dtype, kv_dtype=torch.int8)
    tree = case.plan()
    shape = (2, tree.num_queries, -(-tree.max_columns // 32))
    every = Selection(torch.full(shape, -1, dtype=torch.int32))
    assert same_bits(case.pool.attend(0, case.q, tree, selection=every), case.attend())
    chosen = torch.rand((2, tree.num_queries, tree.max_columns)) < 0.5
    some = Selection.from_bools(chosen)
    out, lse, mass = case.pool.attend_with_mass(0, case.q, tree, selection=some)
    expected = case.expected_with_mass(chosen)
    assert_close(case, level, (out, lse), expected[:2])
    torch.testing.assert_close(mass.double(), expected[2], rtol=1e-5, atol=5e-5)


@pytest.mark.parametrize("level", LEVELS)
@DTYPES
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_scales_that_are_powers_of_two_give_the_bits_of_float_pages(
    level: str, dtype: torch.dtype, head_dim: int
) -> None:
    """Bytes and such scales are exact in either dtype, and so is every product with a scale."""
    _core.set_cpu_isa(level)
    case = make_case(**FAMILY, group=3, head_dim=head_dim, dtype=dtype, kv_dtype=torch.int8)
    scales, generator = case.pool.scales, torch.Generator().manual_seed(1)
    powers = torch.exp2(torch.randint(-8, -4, scales.shape, generator=generator).float())
    scales.copy_(torch.where(scales.isnan(), scales, powers))
    slots, num_pages = live_slots(case.tables, case.lengths), case.pool.num_pages
    kv = case.pool.gather(0, torch.arange(num_pages, dtype=torch.int32), num_pages * PAGE)
    floats = poisoned_pool(generator, num_pages, head_dim=head_dim, dtype=dtype)
    floats.append(0, *(x[slots.long()].to(dtype) for x in kv), slots)
    assert same_bits(case.attend(), replace(case, pool=floats).attend())


@pytest.mark.parametrize("level", LEVELS)
def test_error_of_the_quantization(level: str) -> None:
    """Against exact values: a score is off by at most scale * |q|_1 * step / 2, a value by step / 2."""
    _core.set_cpu_isa(level)
    case = make_case([500, 480], [(0, 0), (0, 400)], [2, 3], kv_dtype=torch.int8)
    slots = live_slots(case.tables, case.lengths)
    torch.manual_seed(1)
    k, v = torch.randn((2, len(slots), 2, 64))
    case.pool.append(0, k, v, slots)
    step = case.pool.scales[0, slots.long() // PAGE].amax(dim=(0, 1))
    assert (step < 6 / 127).all()  # the largest of about 1000 normal numbers
    exact = replace(case, k_slots=torch.zeros_like(case.k_slots), v_slots=torch.zeros_like(case.v_slots))
    reference.append_kv(k, v, exact.k_slots, exact.v_slots, slots)
    out, lse = case.attend()
    expected, expected_lse = exact.expected()
    logit_error = case.q.abs().sum(2).max() * 64**-0.5 * step[0] / 2
    assert (lse - expected_lse).abs().max() <= logit_error
    # Errors of tokens are independent: far below the bound, and a few percent of outputs of size 1.
    assert (out - expected).abs().max() < 0.05
    assert (out - expected).pow(2).mean().sqrt() < 0.01


def test_bad_arguments_of_attention() -> None:
    case = make_case([40], [(0, 0)], [2], kv_dtype=torch.int8)
    k, v = case.pool.layer(0)
    scales, plan = case.pool.layer_scales(0), case.plan()
    with pytest.raises(TypeError, match="scales: got None"):
        tree_attention(case.q, k, v, plan)
    with pytest.raises(TypeError, match=r"q: got torch\.int8"):
        tree_attention(case.q.to(torch.int8), k, v, plan, scales=scales)
    with pytest.raises(ValueError, match=r"scales: .*meta"):
        tree_attention(case.q, k, v, plan, scales=scales.to("meta"))
    floats = KVPool(num_layers=1, num_kv_heads=2, head_dim=64, num_pages=case.pool.num_pages)
    with pytest.raises(ValueError, match="scales: got a tensor, expected None"):
        tree_attention(case.q, *floats.layer(0), plan, scales=scales)
    assert floats.layer_scales(0) is None


def test_opcheck() -> None:
    case = make_case([40, 35], [(0, 0), (0, 32)], [2, 1], kv_dtype=torch.int8)
    case.pool.scales.nan_to_num_()  # it takes NaN for a difference
    args = (case.q, *case.pool.layer(0), case.plan().buffer, 0.125)
    op = torch.ops.tts_kernels.tree_attention.default
    torch.library.opcheck(op, args, {"scales": case.pool.layer_scales(0)})
