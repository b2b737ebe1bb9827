"""Executes work lists in float64, and makes tables of branches to plan."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from tts_kernels import DevicePlan, DevicePlanner, reference

DIRECT = -(2**31)
HEAD_DIM = 16


def parts(plan: DevicePlan) -> dict[str, Tensor]:
    """The sections of a work list, cut to what its header says is there."""
    work, c = plan.work, plan.capacity
    items, queries, merges, pages, partials = work[:5].tolist()
    sizes = {
        "header": (16, 5),
        "items": (8 * c.items, 8 * items),
        "query_order": (c.queries, queries),
        "query_position": (c.queries, queries),
        "query_shared": (c.queries, queries),
        "merge_begin": (c.queries + 16, queries + 1),
        "merge_base": (c.merges, merges),
        "pages": (c.pages, pages),
    }
    result, at = {}, 0
    for name, (room, used) in sizes.items():
        assert used <= room
        result[name] = work[at : at + used]
        at += room
    assert at == len(work)
    assert partials <= c.partials
    result["items"] = result["items"].view(-1, 8)
    return result


def execute(plan: DevicePlan, q: Tensor, k_slots: Tensor, v_slots: Tensor) -> tuple[Tensor, Tensor]:
    """What kernels make of a plan, in float64. q [T, heads, d], slots [num_slots, kv_heads, d]."""
    p = parts(plan)
    group = plan.num_q_heads // plan.num_kv_heads
    order, position = p["query_order"].long(), p["query_position"]
    out = torch.full((plan.num_q_heads, plan.num_queries, HEAD_DIM), torch.nan, dtype=torch.float64)
    lse = torch.full((plan.num_q_heads, plan.num_queries), torch.nan, dtype=torch.float64)
    assert plan.num_items >= len(p["items"])
    partial_out = torch.full(
        (plan.num_q_heads, int(p["header"][4]), HEAD_DIM), torch.nan, dtype=torch.float64
    )
    partial_lse = partial_out[:, :, 0].clone()
    for offset, first, tokens, unmasked, begin, end, base, height in p["items"].tolist():
        assert 0 < end - begin <= height
        assert tokens > 0
        assert 0 <= unmasked <= tokens
        token = torch.arange(tokens)
        page = p["pages"][offset + token // plan.page_size].long()
        held = page >= 0
        assert held[:unmasked].all()
        slot = page.clamp(min=0) * plan.page_size + token % plan.page_size
        row = torch.arange(begin, end)
        q_row, member = order[row // group], row % group
        seen = first + token <= position[row // group, None]
        assert seen[:, :unmasked].all()
        for kv_head in range(plan.num_kv_heads):
            head = kv_head * group + member
            s = q[q_row, head].double() @ k_slots[slot, kv_head].T * HEAD_DIM**-0.5
            s = s.masked_fill(~(seen & held), -torch.inf)
            item_lse, item_out = s.logsumexp(1), s.softmax(1).nan_to_num() @ v_slots[slot, kv_head]
            to = (head, q_row) if base == DIRECT else (head, base + row)
            target_out, target_lse = (out, lse) if base == DIRECT else (partial_out, partial_lse)
            assert base == DIRECT or base + begin >= 0
            assert target_lse[to].isnan().all(), "two items write one row"
            target_out[to], target_lse[to] = item_out, item_lse
    for query in range(plan.num_queries):
        bases = p["merge_base"][p["merge_begin"][query] : p["merge_begin"][query + 1]].long()
        if not len(bases):
            continue
        assert plan.num_merges > query
        for head in range(plan.num_q_heads):
            slots = bases + query * group + head % group
            weights = partial_lse[head, slots]
            assert lse[head, order[query]].isnan(), "merged and written directly"
            lse[head, order[query]] = weights.logsumexp(0)
            out[head, order[query]] = weights.softmax(0) @ partial_out[head, slots]
    return out.transpose(0, 1), lse.T


@dataclass
class Branches:
    """Tables over `num_pages` pages of random keys and values."""

    page_size: int
    num_pages: int
    group: int = 2
    kv_heads: int = 1
    generator: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(0))

    def __post_init__(self) -> None:
        shape = (2, self.num_pages * self.page_size, self.kv_heads, HEAD_DIM)
        self.k, self.v = torch.randn(shape, generator=self.generator, dtype=torch.float64)

    def planner(self, **options: object) -> DevicePlanner:
        return DevicePlanner(
            num_q_heads=self.group * self.kv_heads,
            num_kv_heads=self.kv_heads,
            head_dim=HEAD_DIM,
            page_size=self.page_size,
            num_pages=self.num_pages,
            dtype=torch.bfloat16,
            device="cpu",
            **options,
        )

    def check(self, plan: DevicePlan, tables: Tensor, lengths: Tensor, query_lens: Tensor) -> None:
        count = int(query_lens.sum())
        assert plan.num_queries == count
        q = torch.randn((count, self.group * self.kv_heads, HEAD_DIM), generator=self.generator)
        out, lse = execute(plan, q, self.k, self.v)
        expected = [torch.empty(0, *out.shape[1:]), torch.empty(0, *lse.shape[1:])]
        if count:
            expected = reference.tree_attention(
                q, self.k, self.v, tables, lengths, query_lens, page_size=self.page_size
            )
        torch.testing.assert_close(out, expected[0].to(out))
        torch.testing.assert_close(lse, expected[1].to(lse))


def decode_tables(branches: int, shared: int, own: int, page_size: int = 16) -> tuple[Tensor, Tensor]:
    """Branches that share `shared` pages and have `own` to themselves, of which the last holds one token."""
    prefix = torch.arange(shared, dtype=torch.int32).expand(branches, -1)
    rest = shared + torch.arange(branches * own, dtype=torch.int32).view(branches, own)
    length = page_size * (shared + own - 1) + 1
    return torch.cat([prefix, rest], 1), torch.full((branches,), length, dtype=torch.int32)
