"""tree_attention against the float64 reference, and its promise that a row's bits depend on its path only."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from attention_cases import PAGE, Case, live_slots, make_case, random_cases, random_options
from attention_checks import FAMILY, GROUPS, HEAD_DIMS, LEVELS, check, same_bits
from hypothesis import given, settings

from tts_kernels import KVPool, _core, plan, tree_attention

DTYPES = [torch.float32, torch.bfloat16]
# Of queries and pages, and of queries over int8 pages.
STORED = pytest.mark.parametrize(
    "stored",
    [{"dtype": dtype, "kv_dtype": kv_dtype} for kv_dtype in (None, torch.int8) for dtype in DTYPES],
    ids=["float32", "bfloat16", "float32 over int8", "bfloat16 over int8"],
)
Stored = dict[str, torch.dtype | None]


@pytest.mark.parametrize("level", LEVELS)
@settings(max_examples=20)
@given(case=random_cases(head_dims=HEAD_DIMS, groups=GROUPS, longest=1500), options=random_options())
def test_random_forests(level: str, case: Case, options: dict[str, float | None]) -> None:
    check(case, level, **options)


@pytest.mark.parametrize("level", LEVELS)
@STORED
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_head_dims(level: str, stored: Stored, head_dim: int) -> None:
    case = make_case([70, 85, 33], [(0, 0), (0, 60), (1, 30)], [2, 1, 3], head_dim=head_dim, **stored)
    check(case, level)


@pytest.mark.parametrize("level", LEVELS)
@STORED
@pytest.mark.parametrize("group", [1, 2, 3, 4, 5, 6, 7, 8, 12, 16])
def test_gqa_ratios(level: str, stored: Stored, group: int) -> None:
    check(make_case([40, 47], [(0, 0), (0, 32)], [1, 5], group=group, **stored), level, window=21)


@pytest.mark.parametrize("level", LEVELS)
@STORED
@pytest.mark.parametrize("length", [1, 15, 16, 17, 255, 256, 257, 1023, 1024, 1025, 2049])
def test_page_tile_and_chunk_boundaries(level: str, stored: Stored, length: int) -> None:
    check(make_case([length], [(0, 0)], [1], **stored, head_dim=32), level)


@pytest.mark.parametrize("dtype", DTYPES)
def test_500_branches(dtype: torch.dtype) -> None:
    lengths = [100] + [97 + i % 37 for i in range(499)]
    parents = [(0, 0)] + [(0, 96)] * 499
    torch.set_num_threads(1)  # the reference makes thousands of calls too small for threads
    check(make_case(lengths, parents, [1] * 500, kv_heads=1, dtype=dtype, head_dim=32), LEVELS[0])


@pytest.mark.parametrize("level", LEVELS)
@STORED
@pytest.mark.parametrize("window", [None, 300])
def test_siblings_and_pruning_leave_a_branch_as_it_is(level: str, stored: Stored, window: int | None) -> None:
    _core.set_cpu_isa(level)
    case = make_case(**FAMILY, group=3, **stored)
    out, lse = case.attend(window=window)
    begin = 0
    for branch, count in enumerate(FAMILY["query_lens"]):
        rows = slice(begin, begin + count)
        assert same_bits(case.only(branch).attend(window=window), (out[rows], lse[rows])), branch
        begin += count
    pruned = replace(
        case,
        tables=case.tables[2:],
        lengths=case.lengths[2:],
        query_lens=case.query_lens[2:],
        q=case.q[13:],
    )
    assert same_bits(pruned.attend(window=window), (out[13:], lse[13:]))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_an_unshared_copy_gives_the_same_bits(level: str, dtype: torch.dtype) -> None:
    _core.set_cpu_isa(level)
    case = make_case(**FAMILY, group=3, dtype=dtype)
    shape = case.tables.shape
    own = torch.arange(shape[0] * shape[1], dtype=torch.int32).view(shape)
    heads, head_dim = case.pool.num_kv_heads, case.pool.head_dim
    pool = KVPool(num_layers=1, num_kv_heads=heads, head_dim=head_dim, num_pages=own.numel(), dtype=dtype)
    for branch, length in enumerate(case.lengths.tolist()):
        k, v = case.pool.gather(0, case.tables[branch], length)
        pool.append(0, k, v, own[branch, :1] * PAGE + torch.arange(length, dtype=torch.int32))
    assert same_bits(replace(case, pool=pool, tables=own).attend(), case.attend())


@pytest.mark.parametrize("level", LEVELS)
@STORED
def test_threads_and_query_blocks_do_not_change_bits(level: str, stored: Stored) -> None:
    _core.set_cpu_isa(level)
    case = make_case(**FAMILY, group=3, **stored)
    alone = case.only(5)  # one block of several chunks: threads share it chunk by chunk
    torch.set_num_threads(1)
    expected, expected_alone = case.attend(), alone.attend()
    for threads in (1, 2, 4):
        torch.set_num_threads(threads)
        assert same_bits(alone.attend(), expected_alone)
        for query_block in (1, 5, 32, 256):
            assert same_bits(case.attend(query_block), expected)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", [None, 100])
def test_prefill_rows_equal_decode_rows(level: str, dtype: torch.dtype, window: int | None) -> None:
    _core.set_cpu_isa(level)
    prefill = make_case([1100], [(0, 0)], [90], dtype=dtype)
    out, lse = prefill.attend(window=window)
    for back in (89, 88, 76, 75, 33, 1, 0):
        length = torch.tensor([1100 - back], dtype=torch.int32)
        row = slice(89 - back, 90 - back)
        one = torch.tensor([1], dtype=torch.int32)
        decode = replace(prefill, lengths=length, query_lens=one, q=prefill.q[row])
        assert same_bits(decode.attend(window=window), (out[row], lse[row])), back


def test_visible_nan_reaches_the_result() -> None:
    for level in LEVELS:
        _core.set_cpu_isa(level)
        for dtype in DTYPES:
            case = make_case([40, 50], [(0, 0), (0, 0)], [1, 1], dtype=dtype)
            slot = live_slots(case.tables[:1], case.lengths[:1])[:1]
            row = torch.full((1, 2, 64), torch.nan, dtype=dtype)
            case.pool.append(0, row, row, slot)
            out, lse = case.attend()
            assert out[0].isnan().all()
            assert lse[0].isnan().all()
            assert out[1].isfinite().all()


def test_strided_queries_and_framework_strides() -> None:
    case = make_case([100, 90], [(0, 0), (0, 64)], [3, 2])
    packed = torch.zeros((5, 3, 4, 64))
    packed[:, 1] = case.q
    strided = replace(case, q=packed[:, 1])
    assert not strided.q.is_contiguous()
    assert same_bits(strided.attend(), case.attend())


def test_no_queries() -> None:
    case = make_case([40], [(0, 0)], [0])
    out, lse = case.attend()
    assert out.shape == (0, 4, 64)
    assert lse.shape == (0, 4)


def test_opcheck() -> None:
    case = make_case([40, 35], [(0, 0), (0, 32)], [2, 1])
    p = case.plan()
    args = (case.q, *case.pool.layer(0), p.buffer, 0.125, 16, 5.0)
    torch.library.opcheck(torch.ops.tts_kernels.tree_attention.default, args)


BAD_PLANS = [
    ("pages", (0,), 999, "pages"),
    ("pages", (0,), -2, "pages"),
    ("query_order", (0,), 7, "query_order"),
    ("query_order", (0,), 1, "query_order"),
    ("query_position", (0,), -1, "query_position"),
    ("query_position", (0,), 500, "segments"),
    ("blocks", (0, 0), 1, "blocks"),
    ("blocks", (0, 1), 99, "blocks"),
    ("blocks", (0, 3), 99, "blocks"),
    ("segments", (0, 0), 99, "segments"),
    ("segments", (0, 0), -5, "segments"),
    ("segments", (0, 1), -16, "segments"),
    ("segments", (0, 1), 15, "segments"),
    ("segments", (0, 1), 1, r"segments: query 0 .* first_page 1, expected 0"),
    ("segments", (1, 1), 1, "segments: query 0 .* first_page 1, expected 2"),
    ("segments", (2, 1), 1, "segments: query 2 .* first_page 1, expected 2"),
    ("segments", (0, 2), 0, "segments"),
    ("segments", (0, 2), 2**31 - 1, "segments"),
    ("segments", (0, 3), -1, "segments"),
    ("segments", (0, 4), 99, "segments"),
]


@pytest.mark.parametrize(("field", "index", "value", "message"), BAD_PLANS)
def test_an_index_outside_its_array_is_refused(
    field: str, index: tuple[int, ...], value: int, message: str
) -> None:
    case = make_case([40, 35], [(0, 0), (0, 32)], [2, 1])
    good = case.plan()
    getattr(good, field)[index] = value  # a view of the buffer
    with pytest.raises(ValueError, match=message):
        tree_attention(case.q, *case.pool.layer(0), good)


def test_bad_arguments_name_the_argument() -> None:
    case = make_case([40], [(0, 0)], [2])
    k, v = case.pool.layer(0)
    good = case.plan()
    refused = [
        (TypeError, "plan: got NoneType", lambda: tree_attention(case.q, k, v, None)),  # type: ignore[arg-type]
        (ValueError, "window", lambda: case.attend(window=0)),
        (ValueError, "logits_soft_cap", lambda: case.attend(logits_soft_cap=0.0)),
        (ValueError, "logits_soft_cap", lambda: case.attend(logits_soft_cap=float("nan"))),
        (ValueError, "scale", lambda: case.attend(scale=-1.0)),
        (ValueError, "scale", lambda: case.attend(scale=float("inf"))),
        (TypeError, "q: .*bfloat16", lambda: tree_attention(case.q.bfloat16(), k, v, good)),
        (ValueError, "q: .*shape", lambda: tree_attention(case.q[:, :, :32], k, v, good)),
        (ValueError, "q: .*heads", lambda: tree_attention(case.q[:, :3], k, v, good)),
        (
            ValueError,
            r"plan: got one of 2 queries, expected 1, the rows of q",
            lambda: tree_attention(case.q[:1], k, v, good),
        ),
        (ValueError, "q: .*strides", lambda: tree_attention(case.q.mT.contiguous().mT, k, v, good)),
        (ValueError, "q: .*shape", lambda: tree_attention(case.q[0, 0, 0], k, v, good)),
        (ValueError, "q: .*shape", lambda: tree_attention(case.q[:, :, :0], k, v, good)),
        (TypeError, "q: got ndarray", lambda: tree_attention(case.q.numpy(), k, v, good)),  # type: ignore[arg-type]
        (ValueError, "q: .*meta", lambda: tree_attention(case.q.to("meta"), k, v, good)),
        (ValueError, "k_pages: .*meta", lambda: tree_attention(case.q, k.to("meta"), v, good)),
        (ValueError, "v_pages: .*meta", lambda: tree_attention(case.q, k, v.to("meta"), good)),
        (
            ValueError,
            "plan: .*meta",
            lambda: tree_attention(case.q, k, v, replace(good, buffer=good.buffer.to("meta"))),
        ),
        (TypeError, "k_pages", lambda: tree_attention(case.q, k.half(), v.half(), good)),
        (ValueError, "k_pages", lambda: tree_attention(case.q, v, k, good)),
        (ValueError, "k_pages.*strides", lambda: tree_attention(case.q, k.mT.contiguous().mT, v, good)),
        (
            TypeError,
            "plan: .*int64",
            lambda: tree_attention(case.q, k, v, replace(good, buffer=good.buffer.long())),
        ),
    ]
    for error, message, call in refused:
        with pytest.raises(error, match=message):
            call()


def test_level_is_chosen_by_name() -> None:
    for level in LEVELS:
        _core.set_cpu_isa(level)
        assert _core.cpu_isa() == level
    with pytest.raises(ValueError, match="name: got 'sse9', expected one of"):
        _core.set_cpu_isa("sse9")
    assert _core.cpu_isa() == LEVELS[-1]
    for name, supported in _core.cpu_isa_levels():
        if not supported:
            with pytest.raises(ValueError, match="does not support"):
                _core.set_cpu_isa(name)
    _core.set_cpu_isa(None)
    assert _core.cpu_isa() == LEVELS[0]


@pytest.mark.parametrize("name", ["generic", "sse9"])
def test_level_is_forced_by_the_environment(name: str) -> None:
    code = "from tts_kernels import _core; print(_core.cpu_isa())"
    environment = os.environ | {"TTS_KERNELS_FORCE_CPU_ISA": name}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    if name == "generic":
        assert done.stdout.strip() == "generic"
    else:
        assert done.returncode == 1  # an exception, not a signal
        assert "TTS_KERNELS_FORCE_CPU_ISA: got 'sse9'" in done.stderr


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pad", [2, 6, 34])
def test_pages_of_an_outside_pool_with_odd_strides(dtype: torch.dtype, pad: int) -> None:
    """K and V of a head side by side, each followed by `pad` elements that belong to somebody else."""
    case = make_case([100, 90], [(0, 0), (0, 64)], [3, 2], dtype=dtype)
    k, v = case.pool.layer(0)
    num_pages, heads = k.shape[:2]
    outside = torch.full((num_pages * (heads * 2 + 1), k[0, 0].numel() + pad), torch.nan, dtype=dtype)
    head = 2 * outside.shape[1]
    strides = (heads * head + outside.shape[1], head)
    k_view = outside.as_strided(k.shape, (*strides, *k.stride()[2:]))
    v_view = outside.as_strided(v.shape, (*strides, *v.stride()[2:]), outside.shape[1])
    k_view.copy_(k)
    v_view.copy_(v)
    assert same_bits(tree_attention(case.q, k_view, v_view, case.plan()), case.attend())


def test_a_block_of_any_size() -> None:
    case = make_case([100, 90, 33], [(0, 0), (0, 64), (0, 0)], [30, 20, 1])
    assert same_bits(case.attend(query_block=2**62), case.attend())


def test_plan_of_a_smaller_pool_is_refused() -> None:
    case = make_case([40], [(0, 0)], [2])
    tables = case.tables + case.pool.num_pages
    with pytest.raises(ValueError, match="pages"):
        tree_attention(case.q, *case.pool.layer(0), plan(tables, case.lengths, case.query_lens))
