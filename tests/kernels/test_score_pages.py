"""score_pages against the float64 reference."""

from __future__ import annotations

import pytest
import torch
from attention_cases import PAGE, Case, make_case, random_cases
from attention_checks import LEVELS
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tts_kernels import KVPool, _core, plan, reference, score_pages


def random_summaries(case: Case, kind: str, generator: torch.Generator) -> Tensor:
    """Of the pages in use; NaN for the others."""
    used = case.tables[case.tables >= 0].long().unique()
    d = case.pool.head_dim
    each = {"mean": (1, d), "minmax": (2, d), "quarters": (4, d // 2)}[kind]
    shape = (case.pool.num_pages, case.pool.num_kv_heads, *each)
    summaries = torch.full(shape, torch.nan)
    summaries[used] = torch.randn((len(used), *shape[1:]), generator=generator)
    if kind == "minmax":
        summaries = summaries.sort(2).values
    return summaries.to(case.q.dtype)


def expected(case: Case, summaries: Tensor, **options: float | None) -> Tensor:
    tensors = (case.tables, case.lengths, case.query_lens)
    return reference.score_pages(case.q, summaries, *tensors, **options)


@pytest.mark.parametrize("level", LEVELS)
@settings(max_examples=20)
@given(
    case=random_cases(head_dims=[32, 48, 64, 80, 128], groups=[1, 2, 3, 4, 8], longest=1300),
    kind=st.sampled_from(["mean", "minmax", "quarters"]),
    scale=st.none() | st.floats(0.01, 0.12),
    seed=st.integers(0, 2**31),
)
def test_random_forests(level: str, case: Case, kind: str, scale: float | None, seed: int) -> None:
    _core.set_cpu_isa(level)
    summaries = random_summaries(case, kind, torch.Generator().manual_seed(seed))
    scores = score_pages(case.q, summaries, case.plan(), scale=scale)
    # exp of float32 logits of up to some tens
    torch.testing.assert_close(scores.double(), expected(case, summaries, scale=scale), rtol=2e-5, atol=1e-7)


@pytest.mark.parametrize("kind", ["minmax", "quarters"])
def test_the_bits_of_a_branch_depend_on_its_own_path(kind: str) -> None:
    case = make_case([3000, 2900, 2700, 40], [(0, 0), (0, 2700), (1, 2650), (0, 0)], [1, 2, 1, 3])
    summaries = random_summaries(case, kind, torch.Generator().manual_seed(0))
    together = score_pages(case.q, summaries, case.plan())
    torch.set_num_threads(2)
    assert torch.equal(together, score_pages(case.q, summaries, case.plan(query_block=2)))
    row = 0
    for branch, count in enumerate(case.query_lens.tolist()):
        only = case.only(branch)
        alone = score_pages(only.q, summaries, only.plan())
        assert torch.equal(alone, together[:, row : row + count, : alone.shape[2]])
        row += count


def test_scores_of_equal_keys_are_the_attention_itself() -> None:
    """If all keys of a page are equal, the mean is exact."""
    case = make_case([70, 60], [(0, 0), (0, 48)], [1, 1])
    pool = KVPool(num_layers=1, num_kv_heads=2, head_dim=64, num_pages=case.pool.num_pages, summaries="mean")
    keys = torch.randn((pool.num_pages, 1, 2, 64)).expand(-1, PAGE, -1, -1).flatten(0, 1)
    slots = torch.arange(len(keys), dtype=torch.int32)
    pool.append(0, keys, keys, slots)
    mass = reference.tree_attention(case.q, keys, keys, case.tables, case.lengths, case.query_lens)[2]
    scores = score_pages(case.q, pool.layer_summaries(0), case.plan())
    torch.testing.assert_close(scores.double(), mass, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["mean", "quarters"])
@pytest.mark.parametrize("head_dim", [48, 80, 112, 144])
def test_head_dims_of_an_odd_number_of_words(head_dim: int, kind: str) -> None:
    """Summaries of bfloat16 that are no multiple of 16 words; four tiles at once."""
    case = make_case([1100, 1040], [(0, 0), (0, 1024)], [1, 1], head_dim=head_dim, dtype=torch.bfloat16)
    summaries = random_summaries(case, kind, torch.Generator().manual_seed(0))
    scores = score_pages(case.q, summaries, case.plan())
    torch.testing.assert_close(scores.double(), expected(case, summaries), rtol=2e-5, atol=1e-7)


def test_nan_queries_and_foreign_summaries_are_refused() -> None:
    case = make_case([40, 50], [(0, 0), (0, 32)], [1, 1])
    summaries = random_summaries(case, "mean", torch.Generator())
    q = case.q.clone()
    q[1, 0, 3] = torch.nan
    with pytest.raises(ValueError, match="q: row 1 holds NaN or infinity"):
        score_pages(q, summaries, case.plan())
    with pytest.raises(ValueError, match="summaries: got S = 1, channels = 32, head_dim = 64"):
        score_pages(case.q, summaries[..., :32].contiguous(), case.plan())
    with pytest.raises(ValueError, match="plan: got one of 2 queries, expected 1"):
        score_pages(case.q[:1], summaries, case.plan())
    with pytest.raises(ValueError, match="expected 0 <= page"):
        score_pages(case.q, summaries[:2], case.plan())
    with pytest.raises(ValueError, match="q: got num_q_heads = 4, num_kv_heads = 3, expected"):
        score_pages(case.q, torch.randn((case.pool.num_pages, 3, 1, 64)), case.plan())
    with pytest.raises(ValueError, match="summaries: got num_kv_heads = 0"):
        score_pages(case.q, summaries[:, :0], case.plan())
    with pytest.raises(TypeError, match="summaries: got None; make the pool"):
        score_pages(case.q, None, case.plan())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="float16"):
        score_pages(case.q, summaries.half(), case.plan())
    with pytest.raises(ValueError, match="strides"):
        score_pages(case.q, summaries.expand(-1, -1, 2, -1), case.plan())
    with pytest.raises(ValueError, match="page_size: got 32"):
        score_pages(case.q, summaries, plan(case.tables, case.lengths, case.query_lens, page_size=32))
    with pytest.raises(ValueError, match="scale: got -1"):
        score_pages(case.q, summaries, case.plan(), scale=-1)


def test_opcheck() -> None:
    case = make_case([40, 50], [(0, 0), (0, 32)], [1, 2])
    made = case.plan()
    summaries = random_summaries(case, "mean", torch.Generator()).nan_to_num()
    op = torch.ops.tts_kernels.score_pages.default
    torch.library.opcheck(op, (case.q, summaries, made.buffer, made.max_columns, 0.1))
