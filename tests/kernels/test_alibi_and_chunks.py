"""ALiBi and attention chunks against the float64 reference: packed pages at all levels, plain pages."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from attention_cases import Forest, forests, make_case, random_cases, random_options
from attention_checks import FAMILY, GROUPS, HEAD_DIMS, LEVELS, assert_close, check, same_bits
from hypothesis import given, settings
from hypothesis import strategies as st
from paged_cases import make_paged_case
from torch import Tensor

from tts_kernels import Selection, _core, tree_attention

pytestmark = pytest.mark.usefixtures("one_thread")
STORED = pytest.mark.parametrize("kv_dtype", [None, torch.int8], ids=["pages", "int8 pages"])
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
CHUNKS = st.none() | st.integers(1, 600) | st.sampled_from([16, 256, 1024])


def slopes_of(case: Forest) -> Tensor:
    """As ALiBi has them, 2^-8 for the last head; none for the first."""
    heads = case.q.shape[1]
    slopes = 2 ** (-8 * torch.arange(1, heads + 1) / heads)
    slopes[0] = 0.0
    return slopes


@st.composite
def limits(draw: st.DrawFn, case: Forest) -> dict[str, Any]:
    slopes, sinks = draw(st.booleans()), draw(st.booleans())
    return {
        "alibi_slopes": slopes_of(case) if slopes else None,
        "attention_chunk": draw(CHUNKS),
        "sinks": torch.linspace(-3, 3, case.q.shape[1]) if sinks else None,
    }


@pytest.mark.parametrize("level", LEVELS)
@STORED
@settings(max_examples=10)
@given(data=st.data(), options=random_options())
def test_random_forests(level: str, kv_dtype: torch.dtype | None, data: Any, options: dict[str, Any]) -> None:
    case = data.draw(random_cases(head_dims=HEAD_DIMS, groups=GROUPS, longest=1200, kv_dtype=kv_dtype))
    check(case, level, **options, **data.draw(limits(case)))


@pytest.mark.parametrize("level", LEVELS)
@DTYPES
@pytest.mark.parametrize("chunk", [1, 15, 16, 17, 255, 256, 257, 1024, 1500])
def test_ends_of_chunks(level: str, dtype: torch.dtype, chunk: int) -> None:
    """Queries before, at and behind a multiple of the chunk, and of tiles and their merging."""
    case = make_case([1030, 1500], [(0, 0), (0, 1010)], [8, 20], dtype=dtype, head_dim=32)
    check(case, level, attention_chunk=chunk)


@pytest.mark.parametrize("level", LEVELS)
@STORED
def test_with_selections_and_masses(level: str, kv_dtype: torch.dtype | None) -> None:
    """The distance to a chosen page counts the pages between them that were not chosen."""
    case = make_case([300, 311, 40], [(0, 0), (0, 296), (0, 0)], [3, 12, 2], kv_dtype=kv_dtype)
    _core.set_cpu_isa(level)
    plan, options = case.plan(), {"alibi_slopes": slopes_of(case), "attention_chunk": 100}
    shape = (case.k_slots.shape[1], case.q.shape[0], plan.max_columns)
    chosen = torch.rand(shape, generator=torch.Generator().manual_seed(0)) < 0.5
    selection = Selection.from_bools(chosen)
    out, lse, mass = case.pool.attend_with_mass(0, case.q, plan, selection=selection, **options)
    expected = case.expected_with_mass(chosen=chosen, **options)
    assert_close(case, level, (out, lse), expected[:2])
    torch.testing.assert_close(mass.double(), expected[2], atol=2e-5, rtol=0)


@pytest.mark.parametrize("level", LEVELS)
@DTYPES
def test_no_limit_changes_no_bit(level: str, dtype: torch.dtype) -> None:
    """A chunk longer than all texts, and every page chosen, to the bit. Slopes of 0 within rounding: logits
    are then scaled before their maximum is taken."""
    _core.set_cpu_isa(level)
    case = make_case(**FAMILY, group=3, dtype=dtype)
    assert same_bits(case.attend(attention_chunk=4096), case.attend())
    slopes = slopes_of(case)
    plan = case.plan()
    every = Selection.from_bools(torch.ones((2, case.q.shape[0], plan.max_columns), dtype=torch.bool))
    selected = case.pool.attend(0, case.q, plan, selection=every, alibi_slopes=slopes)
    assert same_bits(selected, case.attend(alibi_slopes=slopes))
    check(case, level, alibi_slopes=torch.zeros(6))


@pytest.mark.parametrize("level", LEVELS)
@STORED
@DTYPES
def test_bits_do_not_depend_on_the_batch(
    level: str, kv_dtype: torch.dtype | None, dtype: torch.dtype
) -> None:
    _core.set_cpu_isa(level)
    case = make_case(**FAMILY, group=3, dtype=dtype, kv_dtype=kv_dtype)
    options = {"alibi_slopes": slopes_of(case), "attention_chunk": 700}
    out, lse = case.attend(**options)
    begin = 0
    for branch, count in enumerate(FAMILY["query_lens"]):
        rows = slice(begin, begin + count)
        assert same_bits(case.only(branch).attend(**options), (out[rows], lse[rows])), branch
        begin += count
    torch.set_num_threads(3)
    assert same_bits(case.attend(5, **options), (out, lse))


def test_opcheck() -> None:
    case = make_case([40, 35], [(0, 0), (0, 32)], [2, 1])
    args = (case.q, *case.pool.layer(0), case.plan().buffer, 0.125, 16, 5.0, None, None, None)
    torch.library.opcheck(torch.ops.tts_kernels.tree_attention.default, (*args, torch.zeros(4), 8))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"alibi_slopes": torch.zeros(3)},
            ValueError,
            r"alibi_slopes: got shape \[3\], expected \[num_q_heads\]",
        ),
        ({"alibi_slopes": torch.zeros(4).half()}, TypeError, "alibi_slopes: got torch.float16"),
        ({"attention_chunk": 0}, ValueError, "attention_chunk: got 0, expected >= 1"),
        ({"attention_chunk": 2.5}, TypeError, "attention_chunk: got 2.5, expected an int"),
    ],
    ids=str,
)
def test_what_does_not_fit(options: dict[str, Any], error: type[Exception], message: str) -> None:
    case = make_case([40], [(0, 0)], [2])
    with pytest.raises(error, match=message):
        tree_attention(case.q, *case.pool.layer(0), case.plan(), **options)


# -- plain pages

SPLIT = ([300, 311, 290, 320], [(0, 0), (0, 296), (0, 280), (2, 290)], [1, 3, 1, 2])


@settings(max_examples=8)
@given(
    forest=forests(branches=5, longest=300, most_queries=40),
    group=st.sampled_from([1, 3, 4]),
    options=random_options(widest=200, largest_scale=0.3),
    data=st.data(),
)
def test_random_forests_on_plain_pages(
    device: torch.device, forest: Any, group: int, options: dict[str, Any], data: Any
) -> None:
    case = make_paged_case(*forest, group=group, device=device)
    drawn = data.draw(limits(case))
    case.check(**options, **{k: v.to(device) if isinstance(v, Tensor) else v for k, v in drawn.items()})


@pytest.mark.parametrize("window", [None, 40])
def test_masses_and_chosen_pages_on_plain_pages(device: torch.device, window: int | None) -> None:
    case = make_paged_case(*SPLIT, group=3, device=device, kv_heads=1)
    plan = case.plan()
    options = {"alibi_slopes": slopes_of(case), "attention_chunk": 110, "window": window}
    on_device = options | {"alibi_slopes": slopes_of(case).to(device)}
    chosen = torch.rand((1, 7, plan.max_columns), generator=torch.Generator().manual_seed(0)) < 0.6
    mask = Selection.from_bools(chosen).mask.to(device)
    out, lse = case.attend(plan, mask=mask, **on_device)
    expected, expected_lse, expected_mass = case.expected_with_mass(chosen=chosen, **options)
    torch.testing.assert_close(out.cpu().double(), expected, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(lse.cpu().double(), expected_lse, atol=2e-5, rtol=1e-6)
    mass = case.mass(plan, mask=mask, **on_device)
    torch.testing.assert_close(mass.cpu().double(), expected_mass, atol=2e-5, rtol=0)


def test_the_operator_on_plain_pages(device: torch.device) -> None:
    case = make_paged_case(*SPLIT, device=device)
    plan, options = case.plan(), {"alibi_slopes": slopes_of(case).to(device), "attention_chunk": 100}
    found = tree_attention(case.q, case.k_pages, case.v_pages, plan, **options)
    assert all(map(torch.equal, found, case.attend(plan, **options)))
