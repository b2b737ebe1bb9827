"""Random trees of branches in poisoned plain pages, for the tests of attention by a work list."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from attention_cases import Forest, live_slots, random_queries, random_tables
from torch import Tensor

from tts_kernels import DevicePlan, DevicePlanner
from tts_kernels.backends import choice
from tts_kernels.backends.launch import AttentionOptions

LAYOUTS = ["HND", "NHD", "vLLM"]


@dataclass
class PagedCase(Forest):
    k_pages: Tensor
    v_pages: Tensor

    def planner(self, **options: object) -> DevicePlanner:
        num_pages, num_kv_heads, page_size, head_dim = self.k_pages.shape
        return DevicePlanner(
            num_q_heads=self.q.shape[1],
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            page_size=page_size,
            num_pages=num_pages,
            dtype=self.q.dtype,
            device=self.q.device,
            **options,
        )

    def plan(self, **options: object) -> DevicePlan:
        return self.planner(**options).update(self.tables, self.lengths, self.query_lens)

    def attend(
        self, plan: DevicePlan, *, mask: Tensor | None = None, **options: Any
    ) -> tuple[Tensor, Tensor]:
        """As the operator does, with NaN in every buffer that the kernels are to write, and behind."""
        plan.partials.fill_(torch.nan)
        rows, heads, head_dim = self.q.shape
        room = max(plan.num_queries, rows) + 3
        out = torch.full((room, heads, head_dim), torch.nan, dtype=self.q.dtype, device=self.q.device)
        lse = torch.full((room, heads), torch.nan, device=self.q.device)
        arguments = (self.q, self.k_pages, self.v_pages, plan.launch, self.options(**options))
        if mask is None:
            kernel = choice.kernel("tree_attention", self.k_pages)
            kernel(*arguments, out[:rows], lse[:rows])
        else:
            kernel = choice.kernel("sparse_attention", self.k_pages)
            kernel(*arguments, out[:rows], lse[:rows], mask)
        assert out[rows:].isnan().all()
        assert lse[rows:].isnan().all()
        return out[:rows], lse[:rows]

    def options(
        self,
        *,
        scale: float | None = None,
        window: int | None = None,
        logits_soft_cap: float | None = None,
        sinks: Tensor | None = None,
        alibi_slopes: Tensor | None = None,
        attention_chunk: int | None = None,
    ) -> AttentionOptions:
        scale = self.q.shape[2] ** -0.5 if scale is None else scale
        numbers = scale, window or 0, logits_soft_cap or 0.0
        return AttentionOptions(*numbers, sinks, alibi_slopes, attention_chunk or 0)

    def mass(self, plan: DevicePlan, *, mask: Tensor | None = None, **options: Any) -> Tensor:
        shape = (plan.num_kv_heads, self.q.shape[0], plan.max_columns)
        mass = torch.full(shape, torch.nan, device=self.q.device)
        kernel = choice.kernel("page_mass", self.k_pages)
        kernel(self.q, self.k_pages, plan.launch, self.options(**options), mask, mass)
        return mass

    def check(self, plan: DevicePlan | None = None, **options: Any) -> None:
        """Compares with the reference.

        In the interpreter everything is float32 until the output is stored, whatever the storage dtype: its
        products of bfloat16 are wrong, silently. It truncates to bfloat16, by up to 2^-7 of a value. A GPU
        rounds each probability to 16-bit dtypes too.
        """
        out, lse = self.attend(self.plan() if plan is None else plan, **options)
        on_cpu = {name: x.cpu() if isinstance(x, Tensor) else x for name, x in options.items()}
        expected, expected_lse = self.expected(**on_cpu)
        rounding = {torch.float32: 0.0, torch.float16: 2**-11, torch.bfloat16: 2**-7}[self.q.dtype]
        atol = 2e-5 + (rounding if out.is_cuda else 0.0)
        torch.testing.assert_close(out.cpu().double(), expected, rtol=max(1e-5, rounding), atol=atol)
        torch.testing.assert_close(
            lse.cpu().double(), expected_lse, rtol=1e-6, atol=1e-4 if out.is_cuda else 2e-5
        )


def make_paged_case(
    lengths: list[int],
    parents: list[tuple[int, int]],
    query_lens: list[int],
    *,
    device: torch.device,
    kv_heads: int = 2,
    group: int = 2,
    head_dim: int = 64,
    page_size: int = 16,
    dtype: torch.dtype = torch.float32,
    layout: str = "HND",
    seed: int = 0,
) -> PagedCase:
    """Branch b shares the pages of the first n tokens of branch p where parents[b] = (p, n)."""
    generator = torch.Generator().manual_seed(seed)
    tables, num_pages = random_tables(lengths, parents, generator, page_size)
    length_tensor = torch.tensor(lengths, dtype=torch.int32)
    slots = live_slots(tables, length_tensor, page_size).long()
    bad = torch.tensor([torch.nan, torch.inf, -torch.inf])
    shape = (2, num_pages * page_size, kv_heads, head_dim)
    stored = bad[torch.randint(0, 3, shape, generator=generator)].to(dtype)
    stored[:, slots] = torch.randn((2, len(slots), *shape[2:]), generator=generator).to(dtype)
    k_pages, v_pages = (
        in_layout(x.view(num_pages, page_size, kv_heads, head_dim).to(device), layout) for x in stored
    )
    query_tensor, q = random_queries(query_lens, kv_heads * group, head_dim, generator)
    k_slots, v_slots = stored.double()
    tensors = (k_slots, v_slots, tables, length_tensor, query_tensor, q.to(dtype).to(device))
    return PagedCase(page_size, *tensors, k_pages, v_pages)


def far_pages(device: torch.device) -> tuple[Tensor, Tensor]:
    """K and V [2, 1, 3, 64] float16 whose tokens lie 2**30 elements apart: the third is beyond int32.

    They span 4 GiB, of which the system maps the parts that are written.
    """
    memory = torch.empty(2**31 + 256, dtype=torch.float16, device=device)
    k_pages, v_pages = (memory.as_strided((2, 1, 3, 64), (128, 64, 2**30, 1), at) for at in (0, 64))
    return k_pages, v_pages


def in_layout(pages: Tensor, layout: str) -> Tensor:
    """[num_pages, page_size, heads, d] as a view [num_pages, heads, page_size, d] of memory in that order."""
    if layout == "NHD":
        return pages.transpose(1, 2)
    pages = pages.transpose(1, 2).contiguous()
    if layout == "vLLM":  # K and V of a token side by side
        return torch.cat([pages, torch.full_like(pages, torch.nan)], dim=-1)[..., : pages.shape[-1]]
    return pages
