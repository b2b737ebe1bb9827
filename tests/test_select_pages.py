"""select_top_pages equals the plain Python rule, bit for bit, and keeps what it must."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from attention_cases import PAGE
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tts_kernels import TreePlan, count_selected, plan, reference, select_pages, select_top_pages


def in_plan_order(tables: Tensor, lengths: Tensor, query_lens: Tensor) -> list[int]:
    """The branches in depth-first order of the plan."""
    made = plan(tables, lengths, query_lens)
    first_row = query_lens.cumsum(0) - query_lens
    row_of_branch = {int(first_row[b]): b for b in range(len(tables)) if query_lens[b]}
    order = [row_of_branch[int(made.query_order[begin])] for begin, *_ in made.branches.tolist()]
    return order + [b for b in range(len(tables)) if b not in order]


@st.composite
def forests(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor]:
    """Block tables of branches that fork at any page, lengths, query lengths; depth-first."""
    paths: list[list[int]] = []
    fresh = iter(range(10_000))
    for _ in range(draw(st.integers(1, 9))):
        path = list(draw(st.sampled_from(paths)))[: draw(st.integers(0, 20))] if paths else []
        path = [page if draw(st.integers(0, 9)) else -1 for page in path]  # some were evicted
        more = draw(st.integers(1 if path[-1:] in ([], [-1]) else 0, 12))
        paths.append(path + [next(fresh) for _ in range(more)])
    lengths = torch.tensor([len(p) * PAGE - draw(st.integers(0, PAGE - 1)) for p in paths], dtype=torch.int32)
    # No query lies in an evicted page.
    ends = [max([c + 1 for c, page in enumerate(path) if page < 0], default=0) * PAGE for path in paths]
    most = [min(int(n) - end, 20) for n, end in zip(lengths, ends, strict=True)]
    query_lens = torch.tensor([draw(st.integers(0, n)) for n in most], dtype=torch.int32)
    query_lens[0] = max(1, int(query_lens[0]))
    width = max(map(len, paths))
    tables = torch.tensor([path + [-1] * (width - len(path)) for path in paths], dtype=torch.int32)
    order = in_plan_order(tables, lengths, query_lens)
    return tables[order], lengths[order], query_lens[order]


def random_scores(
    made: TreePlan, forest: tuple[Tensor, Tensor, Tensor], heads: int, generator: torch.Generator
) -> Tensor:
    """Few distinct values, so that ties are common; zeros among them, behind the position and for holes."""
    shape = (heads, made.num_queries, made.max_columns)
    scores = torch.randint(0, 6, shape, generator=generator).float() / 8
    seen = made.query_position[made.query_order.argsort()] // PAGE + 1
    held = forest[0].repeat_interleave(forest[2], dim=0)[:, : made.max_columns] >= 0
    return scores * (torch.arange(made.max_columns) < seen[:, None]) * held


@settings(max_examples=150, deadline=None)
@given(
    forest=forests(),
    budget=st.integers(1, 30),
    per_row=st.booleans(),
    top_p=st.none() | st.floats(0.05, 1.0),
    sink=st.integers(0, 3),
    recent=st.integers(1, 3),
    share=st.sampled_from(["branch", "siblings", "tree"]),
    keep_tail=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_equals_plain_python(
    forest: tuple[Tensor, Tensor, Tensor], budget: int, per_row: bool, seed: int, **options: Any
) -> None:
    made = plan(*forest)
    generator = torch.Generator().manual_seed(seed)
    scores = random_scores(made, forest, 2, generator)
    budgets: int | Tensor = budget
    if per_row:
        budgets = torch.randint(1, budget + 1, (made.num_queries,), generator=generator, dtype=torch.int32)
    found = select_top_pages(scores, made, budgets, **options).to_bools(made.max_columns)
    wanted = reference.select_top_pages(
        scores, *forest, budget if isinstance(budgets, int) else budgets.tolist(), **options
    )
    assert torch.equal(found, wanted)


def fan_out(branches: int, shared: int, own: int) -> TreePlan:
    """One prompt of `shared` pages, `own` pages behind it for each branch."""
    tails = shared + torch.arange(branches * own, dtype=torch.int32).view(branches, own)
    prefix = torch.arange(shared, dtype=torch.int32).expand(branches, -1)
    lengths = torch.full((branches,), (shared + own) * PAGE, dtype=torch.int32)
    return plan(torch.cat([prefix, tails], dim=1), lengths)


@settings(max_examples=50, deadline=None)
@given(forest=forests(), share=st.sampled_from(["branch", "tree"]), seed=st.integers(0, 2**31))
def test_counts_are_those_of_the_bits(forest: tuple[Tensor, Tensor, Tensor], share: Any, seed: int) -> None:
    """pairs: bits of columns that a query sees; loads: distinct pages among them, for each head."""
    made = plan(*forest, query_block=2)
    scores = random_scores(made, forest, 2, torch.Generator().manual_seed(seed))
    selection = select_top_pages(scores, made, 4, share=share)
    chosen = selection.to_bools(made.max_columns)
    tables, lengths, query_lens = forest
    pairs, loads = 0, set()
    for head in range(2):
        row = 0
        for table, length, count in zip(tables, lengths.tolist(), query_lens.tolist(), strict=True):
            for position in range(length - count, length):
                for column in range(position // PAGE + 1):
                    if chosen[head, row, column] and table[column] >= 0:
                        pairs += 1
                        loads.add((head, int(table[column])))
                row += 1
    assert count_selected(selection, made) == (pairs, len(loads))


def test_one_set_for_a_tree_reads_no_more_pages_than_one_branch() -> None:
    made = fan_out(branches=12, shared=64, own=2)
    scores = torch.rand((2, 12, 66))
    for share, most in [("tree", 16), ("siblings", 16), ("branch", 64)]:
        chosen = select_top_pages(scores, made, 18, share=share).to_bools(66)
        assert chosen.sum(-1).eq(18).all()
        shared = chosen[..., :64]
        assert shared.any(1).sum(-1).le(most).all()
        assert share == "branch" or bool((shared == shared[:, :1]).all())


def test_a_branch_keeps_what_lies_behind_its_fork() -> None:
    made = fan_out(branches=3, shared=20, own=5)
    chosen = select_top_pages(torch.rand((1, 3, 25)), made, 8).to_bools(25)
    assert chosen[..., 20:].all()
    assert chosen[..., 0].all()
    assert chosen.sum(-1).eq(8).all()
    without = select_top_pages(torch.rand((1, 3, 25)), made, 8, keep_tail=False, recent=2).to_bools(25)
    assert without[..., 23:].all()
    assert without.sum(-1).eq(8).all()
    alone = plan(torch.arange(25, dtype=torch.int32)[None], torch.tensor([400], dtype=torch.int32))
    assert select_top_pages(torch.rand((1, 1, 25)), alone, 8).to_bools(25).sum() == 8


def test_top_p_takes_as_few_as_it_needs() -> None:
    made = fan_out(branches=1, shared=9, own=1)
    scores = torch.tensor([0.05, 0.3, 0.05, 0.2, 0.05, 0.05, 0.1, 0.05, 0.05, 0.1])[None, None]
    assert select_top_pages(scores, made, 9, top_p=0.6).to_bools(10)[0, 0].nonzero().flatten().tolist() == [
        0,
        1,
        3,
        9,
    ]
    assert select_top_pages(scores, made, 3, top_p=0.6).to_bools(10).sum() == 3


def test_evicted_pages_make_no_tail_and_no_tree() -> None:
    """What two branches share behind a hole of one of them is no tail; a hole that both have is no root."""
    tables = torch.arange(66, dtype=torch.int32).repeat(2, 1)
    tables[1, 65], tables[1, 5] = 66, -1
    lengths = torch.full((2,), 66 * PAGE, dtype=torch.int32)
    chosen = select_top_pages(torch.rand((1, 2, 66)), plan(tables, lengths), 8).to_bools(66)
    assert chosen.sum(-1).eq(8).all()
    tables = torch.arange(132, dtype=torch.int32).view(2, 66)
    tables[:, 0] = -1
    made = plan(tables, lengths)
    assert made.branches[:, 2:].eq(0).all()
    assert select_top_pages(torch.rand((1, 2, 66)), made, 8, share="tree").to_bools(66).sum(-1).eq(8).all()


def test_bad_arguments() -> None:
    made = fan_out(branches=2, shared=4, own=1)
    scores = torch.rand((1, 2, 5))
    for bad_score in (-1.0, torch.nan, torch.inf):
        broken = scores.clone()
        broken[0, 1, 2] = bad_score
        with pytest.raises(ValueError, match="scores: row 1 holds a negative number, NaN or infinity"):
            select_top_pages(broken, made, 2)
    with pytest.raises(ValueError, match="page_size: got 8, expected 16"):
        select_top_pages(scores, replace(made, page_size=8), 2)
    for budget in (0, -3, torch.tensor([1, 0], dtype=torch.int32)):
        with pytest.raises(ValueError, match=r"budget: got .*, expected at least 1 page"):
            select_top_pages(scores, made, budget)
    assert select_top_pages(scores, made, 10**12).to_bools(5).all()  # beyond the pages: dense
    bad: list[tuple[dict[str, Any], str]] = [
        ({"top_p": 0.0}, "top_p: got 0.0"),
        ({"top_p": float("nan")}, "top_p: got nan"),
        ({"sink": -1}, "sink: got -1"),
        ({"recent": 0}, "recent: got 0, expected >= 1"),
        ({"share": "all"}, "share: got 'all'"),
    ]
    for options, message in bad:
        with pytest.raises(ValueError, match=message):
            select_top_pages(scores, made, 2, **options)
    with pytest.raises(ValueError, match=r"scores: got shape \[1, 2, 4\], expected \[num_kv_heads, 2, 5\]"):
        select_top_pages(scores[..., :4], made, 2)
    with pytest.raises(TypeError, match=r"scores: got torch.float64"):
        select_top_pages(scores.double(), made, 2)
    with pytest.raises(TypeError, match=r"budget: got 2\.5"):
        select_top_pages(scores, made, 2.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"budget: got shape \[3\]"):
        select_top_pages(scores, made, torch.ones(3, dtype=torch.int32))


def test_select_pages_is_scores_then_the_best() -> None:
    made = fan_out(branches=2, shared=30, own=1)
    q, summaries = torch.randn((2, 4, 32)), torch.randn((32, 2, 1, 32))
    chosen = select_pages(q, summaries, made, 8, scale=0.3).to_bools(31)
    tables = torch.cat([torch.arange(30).expand(2, -1), torch.tensor([[30], [31]])], dim=1)
    ones = torch.ones(2, dtype=torch.int32)
    scores = reference.score_pages(q, summaries, tables, 31 * PAGE * ones, ones, scale=0.3)
    assert torch.equal(chosen, reference.select_top_pages(scores, tables, 31 * PAGE * ones, ones, 8))
