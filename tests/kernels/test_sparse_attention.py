"""tree_attention over selected pages, and the mass of pages, against the float64 reference."""

from __future__ import annotations

import pytest
import torch
from attention_cases import Case, make_case, random_cases, random_options
from attention_checks import LEVELS, assert_close
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tts_kernels import Selection, _core, tree_attention, tree_attention_with_mass

DTYPES = [torch.float32, torch.bfloat16]
CASES = random_cases(head_dims=[32, 64, 80, 128], groups=[1, 2, 3, 4, 8], longest=1300)


def random_choice(case: Case, share: float, generator: torch.Generator) -> Tensor:
    """bool [kv_heads, T, P]; some rows choose nothing, some all."""
    columns = case.plan().max_columns
    chosen = torch.rand((case.pool.num_kv_heads, len(case.q), columns), generator=generator) < share
    kind = torch.rand(chosen.shape[:2], generator=generator)
    return (chosen | (kind > 0.9)[..., None]) & (kind > 0.05)[..., None]


def attend(
    case: Case, chosen: Tensor | None, query_block: int = 32, **options: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    selection = None if chosen is None else Selection.from_bools(chosen)
    plan = case.plan(query_block=query_block)
    return tree_attention_with_mass(case.q, *case.pool.layer(0), plan, selection=selection, **options)


def check(case: Case, chosen: Tensor | None, level: str, **options: float | None) -> None:
    """A page's mass is a sum of probabilities of float32 logits."""
    _core.set_cpu_isa(level)
    *found, mass = attend(case, chosen, **options)
    *expected, expected_mass = case.expected_with_mass(chosen, **options)
    assert_close(case, level, found, expected)
    torch.testing.assert_close(mass.double(), expected_mass, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("level", LEVELS)
@settings(max_examples=20)
@given(
    case=CASES,
    options=random_options(),
    share=st.sampled_from([0.02, 0.1, 0.5, 0.9]),
    seed=st.integers(0, 2**31),
)
def test_random_forests(
    level: str, case: Case, options: dict[str, float | None], share: float, seed: int
) -> None:
    chosen = random_choice(case, share, torch.Generator().manual_seed(seed))
    check(case, chosen, level, **options)


@pytest.mark.parametrize("level", LEVELS)
@settings(max_examples=10)
@given(case=CASES, options=random_options())
def test_everything_selected_is_dense_bit_for_bit(
    level: str, case: Case, options: dict[str, float | None]
) -> None:
    _core.set_cpu_isa(level)
    chosen = torch.ones((case.pool.num_kv_heads, len(case.q), case.plan().max_columns), dtype=torch.bool)
    for found, dense in zip(attend(case, chosen, **options), attend(case, None, **options), strict=True):
        assert torch.equal(found, dense)
    check(case, None, level, **options)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("level", LEVELS)
def test_the_bits_of_a_branch_depend_on_its_own_pages(level: str, dtype: torch.dtype) -> None:
    """Alone or among siblings, in other blocks, on other threads, whatever the others select."""
    _core.set_cpu_isa(level)
    case = make_case(
        [3000, 2900, 2700, 40], [(0, 0), (0, 2700), (1, 2650), (0, 0)], [1, 2, 1, 3], dtype=dtype, head_dim=32
    )
    generator = torch.Generator().manual_seed(1)
    chosen = random_choice(case, 0.2, generator)
    outputs = []
    for threads, query_block in [(1, 32), (2, 32), (1, 3), (2, 1)]:
        torch.set_num_threads(threads)
        outputs.append(attend(case, chosen, query_block))
    for other in outputs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(outputs[0], other, strict=True))
    row = 0
    for branch, count in enumerate(case.query_lens.tolist()):
        rows = slice(row, row + count)
        row += count
        only = case.only(branch)
        alone = attend(only, chosen[:, rows, : only.plan().max_columns])
        assert torch.equal(alone[0], outputs[0][0][rows])
        assert torch.equal(alone[1], outputs[0][1][rows])
        assert torch.equal(alone[2], outputs[0][2][:, rows, : alone[2].shape[2]])


def test_bits_of_a_selection() -> None:
    chosen = torch.rand((2, 3, 70), generator=torch.Generator().manual_seed(0)) < 0.5
    mask = Selection.from_bools(chosen).mask
    assert mask.shape == (2, 3, 3)
    for h, t, c in [(0, 0, 0), (1, 2, 31), (0, 1, 32), (1, 1, 69)]:
        assert bool(mask[h, t, c // 32].item() >> (c % 32) & 1) == bool(chosen[h, t, c])
    assert torch.equal(Selection(mask).to_bools(70), chosen)


def test_selections_of_other_queries_are_refused() -> None:
    case = make_case([40, 50], [(0, 0), (0, 32)], [1, 1])
    for mask, message in [
        (torch.zeros((2, 3, 1), dtype=torch.int32), r"selection.mask: got shape \[2, 3, 1\]"),
        (torch.zeros((1, 2, 1), dtype=torch.int32), r"selection.mask: got shape \[1, 2, 1\]"),
        (torch.zeros((2, 2, 4), dtype=torch.int32)[..., ::2], "strides"),
        (torch.zeros((2, 2, 0), dtype=torch.int32), "selection.mask: got words = 0"),
        (torch.zeros((2, 2, 1), dtype=torch.int32, device="meta"), "selection.mask: got a tensor on meta"),
    ]:
        with pytest.raises(ValueError, match=message):
            tree_attention(case.q, *case.pool.layer(0), case.plan(), selection=Selection(mask))
    long = make_case([600], [(0, 0)], [1])
    with pytest.raises(
        ValueError, match=r"selection.mask: got 1 words a row, expected a bit for each of the 38"
    ):
        tree_attention(
            long.q,
            *long.pool.layer(0),
            long.plan(),
            selection=Selection(mask.new_zeros((2, 1, 1), device="cpu")),
        )
    mask = torch.zeros((2, 2, 1), dtype=torch.int64)
    with pytest.raises(TypeError, match=r"selection.mask: got torch.int64"):
        tree_attention(case.q, *case.pool.layer(0), case.plan(), selection=Selection(mask))
    with pytest.raises(TypeError, match="selection: got Tensor, expected a Selection"):
        tree_attention(case.q, *case.pool.layer(0), case.plan(), selection=mask)  # type: ignore[call-overload]


@pytest.mark.parametrize("mass", [True, False])
def test_opcheck(mass: bool) -> None:
    case = make_case([40, 50], [(0, 0), (0, 32)], [1, 2])
    plan = case.plan()
    mask = Selection.from_bools(random_choice(case, 0.5, torch.Generator())).mask
    arguments = (case.q, *case.pool.layer(0), plan.buffer, 0.1, None, None, mask)
    ops = torch.ops.tts_kernels
    if mass:
        torch.library.opcheck(ops.tree_attention_with_mass.default, (*arguments, None, plan.max_columns))
    else:
        torch.library.opcheck(ops.tree_attention.default, arguments)
