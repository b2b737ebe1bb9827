"""Pages of 8 bits with scales: launchers of plain pages, in Triton's interpreter or on a GPU."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from paged_cases import make_paged_case
from torch import Tensor

from tts_kernels import DevicePlanner, KVPool, gather_kv, reference, score_pages, select_top_pages
from tts_kernels.backends import choice
from tts_kernels.plans.selection import Selection

pytestmark = pytest.mark.usefixtures("one_thread")

HEADS, PAGES, HEAD_DIM = 2, 5, 80


def launch(op: str, pages: Tensor, *arguments: Tensor | None) -> None:
    choice.kernel(op, pages)(*arguments)


def scaled_append(stored: Tensor, scale: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Bytes [n, heads, d] and scale [heads] of a page behind tokens x; as specified for int8."""
    needed = x.abs().amax(dim=(0, 2)) / 127
    zeros = (stored == 0).flatten(0, 0).all(dim=2).all(dim=0) if len(stored) else torch.ones(HEADS) > 0
    grown = torch.maximum(torch.where(zeros, 0.0, scale), needed)
    grown = torch.where(grown > 0, grown, 1.0)
    old = stored.float() * torch.where(zeros, 0.0, scale)[:, None]
    return (torch.cat([old, x]) / grown[:, None]).round().to(torch.int8), grown


@pytest.mark.parametrize(("page_size", "layout"), [(16, "HND"), (24, "NHD"), (1, "HND")])
def test_append_rounds_again_where_the_scale_grows(device: torch.device, page_size: int, layout: str) -> None:
    shape = (2, PAGES, HEADS, page_size, HEAD_DIM)
    if layout == "NHD":
        memory = torch.full((2, PAGES, page_size, HEADS, HEAD_DIM), 55, dtype=torch.int8, device=device)
        pages = memory.transpose(2, 3)
    else:
        pages = torch.full(shape, 55, dtype=torch.int8, device=device)
    scales = torch.full((PAGES, HEADS, 2), torch.nan, device=device)
    stored = [torch.zeros((0, HEADS, HEAD_DIM), dtype=torch.int8) for _ in range(2)]
    scale = [torch.ones(HEADS) for _ in range(2)]
    length = 0
    for count, size in ((min(3, page_size), 0.0), (5, 1.0), (4, 3.0), (2, 0.1)):
        count = min(count, page_size - length)
        if count <= 0:
            break
        # Tokens of another page before, of a page outside the pool behind.
        slots = [
            *range(4 * page_size, 4 * page_size + 1),
            *range(2 * page_size + length, 2 * page_size + length + count),
        ]
        slots_tensor = torch.tensor([*slots, PAGES * page_size], dtype=torch.int32, device=device)
        rows = size * torch.randn((2, len(slots_tensor), HEADS, HEAD_DIM))
        launch("append_scaled", pages[0], *rows.to(device), *pages, slots_tensor, scales)
        length += count
        for kind in range(2):
            stored[kind], scale[kind] = scaled_append(stored[kind], scale[kind], rows[kind, 1 : 1 + count])
            found = pages[kind, 2].transpose(0, 1).cpu()
            assert torch.equal(found[:length], stored[kind])
            assert (found[length:] == 55).all()
            torch.testing.assert_close(scales[2, :, kind].cpu(), scale[kind], rtol=0, atol=0)
    assert scales[[0, 1, 3]].isnan().all()
    assert (pages[:, [0, 1, 3]] == 55).all()


def test_nan_breaks_a_page_until_it_begins_anew(device: torch.device) -> None:
    pages = torch.zeros((2, PAGES, HEADS, 16, HEAD_DIM), dtype=torch.int8, device=device)
    scales = torch.ones((PAGES, HEADS, 2), device=device)
    for value, broken in ((torch.inf, True), (1.0, False)):
        rows = torch.full((2, 1, HEADS, HEAD_DIM), value, device=device)
        launch(
            "append_scaled", pages[0], *rows, *pages, torch.zeros(1, dtype=torch.int32, device=device), scales
        )
        assert (scales[0].isnan() == broken).all()


@pytest.mark.parametrize("share", [None, 0.4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_and_gather(device: torch.device, dtype: torch.dtype, share: float | None) -> None:
    """The same as over the values that bytes and scales stand for."""
    case = make_paged_case([70, 85, 33], [(0, 0), (0, 60), (1, 30)], [2, 1, 3], device=device, dtype=dtype)
    num_pages, heads, page_size, head_dim = case.k_pages.shape
    generator = torch.Generator().manual_seed(1)
    stored = torch.randint(-127, 128, (2, *case.k_pages.shape), dtype=torch.int8, generator=generator)
    scales = torch.rand((num_pages, heads, 2), generator=generator) / 50
    scales[[p for p in range(num_pages) if p not in case.tables.flatten().tolist()]] = torch.nan
    values = stored.double() * scales.double().permute(2, 0, 1)[..., None, None]
    k_slots, v_slots = values.transpose(2, 3).flatten(1, 2)
    k_pages, v_pages = stored.to(device)
    plan = case.plan()
    case = replace(case, k_pages=k_pages, v_pages=v_pages, k_slots=k_slots, v_slots=v_slots)
    shape = (heads, case.q.shape[0], plan.max_columns)
    chosen = None if share is None else torch.rand(shape, generator=generator) < share
    mask = None if chosen is None else Selection.from_bools(chosen).mask.to(device)
    expected = case.expected_with_mass(chosen)
    on_device = scales.to(device)
    out = torch.full_like(case.q, torch.nan)
    lse = torch.full(case.q.shape[:2], torch.nan, device=device)
    mass = torch.full(shape, torch.nan, device=device)
    options = case.options()
    choice.kernel("sparse_attention", k_pages)(
        case.q, k_pages, v_pages, plan.launch, options, out, lse, mask, on_device
    )
    choice.kernel("page_mass", k_pages)(case.q, k_pages, plan.launch, options, mask, mass, on_device)
    rtol, atol = (1e-4, 2e-5) if dtype == torch.float32 else (2**-6, 1e-2)
    for found, wanted in zip((out, lse, mass), expected, strict=True):
        torch.testing.assert_close(found.cpu().double(), wanted, rtol=rtol, atol=atol)

    table = case.tables[0].to(device)
    rows = torch.full((2, 70, heads, head_dim), torch.nan, device=device)
    launch("gather_kv", k_pages, k_pages, v_pages, table, *rows, on_device)
    for found, slots in zip(rows, (k_slots, v_slots), strict=True):
        wanted, _ = reference.gather_kv(slots, slots, case.tables[0], 70, page_size)
        torch.testing.assert_close(found.cpu(), wanted.float(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("vectors", [1, 2])
def test_summaries_are_of_the_values(device: torch.device, vectors: int) -> None:
    stored = torch.randint(-127, 128, (PAGES, HEADS, 16, HEAD_DIM), dtype=torch.int8)
    scales = torch.rand((PAGES, HEADS, 2))
    summaries = torch.full((PAGES, HEADS, vectors, HEAD_DIM), torch.nan, dtype=torch.bfloat16, device=device)
    slots = torch.arange(16, 36, dtype=torch.int32, device=device)
    pages = stored.to(device)
    launch("summarize_pages", pages, pages, slots, summaries, scales.to(device))
    values = (stored.double() * scales[:, :, :1, None].double()).transpose(1, 2).flatten(0, 1)
    kind = "mean" if vectors == 1 else "minmax"
    expected = reference.page_summaries(values, torch.tensor([0, 16, 4, 0, 0]), kind)
    torch.testing.assert_close(summaries.cpu().double(), expected, rtol=2**-7, atol=1e-3, equal_nan=True)


def test_a_pool_of_int8(device: torch.device) -> None:
    """Append, copy, gather, selection and attention through the operators, against the values in the pool."""
    pool = KVPool(
        num_layers=2,
        num_kv_heads=HEADS,
        head_dim=64,
        num_pages=8,
        dtype=torch.int8,
        device=device,
        layout="NHD",
        summaries="mean",
    )
    tokens = 40
    for layer in range(2):
        for part in (range(20), range(20, tokens)):
            slots = torch.tensor(list(part), dtype=torch.int32, device=device)
            pool.append(layer, *torch.randn((2, len(part), HEADS, 64), device=device), slots)
    pool.copy(torch.tensor([[2, 5]], dtype=torch.int32, device=device))
    tables = torch.tensor([[0, 1, 2], [0, 1, 5]], dtype=torch.int32)
    lengths, ones = torch.tensor([tokens, tokens - 1], dtype=torch.int32), torch.ones(2, dtype=torch.int32)
    rows = [pool.gather(1, table.to(device), tokens) for table in tables]
    assert all(map(torch.equal, *rows))
    slots_now = [torch.full((8 * 16, HEADS, 64), torch.nan, dtype=torch.float64) for _ in range(2)]
    for kept, values in zip(slots_now, rows[0], strict=True):
        kept[:tokens] = values.cpu()
        kept[80:88] = values[32:].cpu()
    planner = DevicePlanner(
        num_q_heads=4,
        num_kv_heads=HEADS,
        head_dim=64,
        page_size=16,
        num_pages=8,
        dtype=torch.int8,
        device=device,
    )
    plan = planner.update(tables, lengths)
    q = torch.randn((2, 4, 64), device=device)
    scores = score_pages(q, pool.layer_summaries(1), plan)
    arguments = (tables, lengths, ones)
    summaries = pool.layer_summaries(1).cpu()
    expected_scores = reference.score_pages(q.cpu(), summaries, *arguments)
    torch.testing.assert_close(scores.cpu().double(), expected_scores, rtol=1e-4, atol=1e-6)
    selection = select_top_pages(scores, plan, 2)
    chosen = reference.select_top_pages(scores.cpu(), *arguments, 2)
    expected = reference.tree_attention(q.cpu(), *slots_now, *arguments, chosen=chosen)
    results = pool.attend_with_mass(1, q, plan, selection=selection)
    for found, wanted in zip(results, expected, strict=True):
        torch.testing.assert_close(found.cpu().double(), wanted, rtol=1e-4, atol=2e-5)


def test_float8_is_refused_where_there_is_no_kernel() -> None:
    pages = torch.zeros((2, HEADS, 16, 64)).to(torch.float8_e4m3fn)
    with pytest.raises(ValueError, match="float8_e4m3fn on the CPU"):
        gather_kv(pages, pages, torch.zeros(1, dtype=torch.int32), 1, scales=torch.ones((2, HEADS, 2)))
    with pytest.raises(TypeError, match="scales: got None"):
        gather_kv(pages, pages, torch.zeros(1, dtype=torch.int32), 1)
