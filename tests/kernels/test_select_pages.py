"""select_top_pages equals the plain Python rule, bit for bit, and keeps what it must."""

from __future__ import annotations

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


@settings(max_examples=150)
@given(
    forest=forests(),
    budget=st.integers(1, 30),
    per_row=st.booleans(),
    top_p=st.none() | st.floats(0.05, 1.0),
    sink=st.integers(0, 3),
    recent=st.integers(1, 3),
    has_tails=st.booleans(),
    num_groups=st.none() | st.integers(1, 4),
    seed=st.integers(0, 2**31),
)
def test_equals_plain_python(
    forest: tuple[Tensor, Tensor, Tensor],
    budget: int,
    per_row: bool,
    has_tails: bool,
    num_groups: int | None,
    seed: int,
    **options: Any,
) -> None:
    """Tails begin anywhere, and queries of a group lie anywhere in the forest."""
    made = plan(*forest)
    generator = torch.Generator().manual_seed(seed)
    scores = random_scores(made, forest, 2, generator)

    def each(low: int, high: int) -> Tensor:
        return torch.randint(low, high, (made.num_queries,), generator=generator, dtype=torch.int32)

    rows = {"budget": each(1, budget + 1) if per_row else torch.full((made.num_queries,), budget).int()}
    if has_tails:
        rows["tail_begin"] = each(0, made.max_columns + 1)
    if num_groups is not None:
        rows["groups"] = each(0, min(num_groups, made.num_queries))
    found = select_top_pages(scores, made, **rows, **options).to_bools(made.max_columns)
    lists = {name: value.tolist() for name, value in rows.items()}
    wanted = reference.select_top_pages(scores, *forest, **lists, **options)
    assert torch.equal(found, wanted)


@settings(max_examples=40)
@given(forest=forests(), num_groups=st.integers(1, 3), seed=st.integers(0, 2**31))
def test_a_choice_does_not_depend_on_other_groups(
    forest: tuple[Tensor, Tensor, Tensor], num_groups: int, seed: int
) -> None:
    """The branches of one group choose the same in a plan of their own."""
    tables, lengths, query_lens = forest
    made = plan(*forest)
    generator = torch.Generator().manual_seed(seed)
    scores = random_scores(made, forest, 2, generator)
    of_branch = torch.randint(0, num_groups, (len(tables),), generator=generator)
    of_branch = of_branch.clamp(max=made.num_queries - 1)
    groups = of_branch.repeat_interleave(query_lens).int()
    tails = torch.randint(0, made.max_columns + 1, groups.shape, generator=generator, dtype=torch.int32)
    found = select_top_pages(scores, made, 4, tail_begin=tails, groups=groups, top_p=0.8)
    for group in groups.unique().tolist():
        mine, rows = of_branch == group, groups == group
        alone = plan(tables[mine], lengths[mine], query_lens[mine])
        own = select_top_pages(
            scores[:, rows, : alone.max_columns].contiguous(),
            alone,
            4,
            tail_begin=tails[rows].contiguous(),
            groups=torch.zeros_like(groups[rows]),
            top_p=0.8,
        )
        wanted = own.to_bools(alone.max_columns)
        assert torch.equal(found.to_bools(alone.max_columns)[:, rows], wanted)


def fan_out(branches: int, shared: int, own: int) -> TreePlan:
    """One prompt of `shared` pages, `own` pages behind it for each branch."""
    tails = shared + torch.arange(branches * own, dtype=torch.int32).view(branches, own)
    prefix = torch.arange(shared, dtype=torch.int32).expand(branches, -1)
    lengths = torch.full((branches,), (shared + own) * PAGE, dtype=torch.int32)
    return plan(torch.cat([prefix, tails], dim=1), lengths)


@settings(max_examples=50)
@given(forest=forests(), together=st.booleans(), seed=st.integers(0, 2**31))
def test_counts_are_those_of_the_bits(
    forest: tuple[Tensor, Tensor, Tensor], together: bool, seed: int
) -> None:
    """pairs: bits of columns that a query sees; loads: distinct pages among them, for each head."""
    made = plan(*forest, query_block=2)
    scores = random_scores(made, forest, 2, torch.Generator().manual_seed(seed))
    groups = torch.zeros(made.num_queries, dtype=torch.int32) if together else None
    selection = select_top_pages(scores, made, 4, groups=groups)
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
    tails = torch.full((12,), 64, dtype=torch.int32)
    for groups, most in [(torch.zeros(12, dtype=torch.int32), 16), (None, 64)]:
        chosen = select_top_pages(scores, made, 18, tail_begin=tails, groups=groups).to_bools(66)
        assert chosen.sum(-1).eq(18).all()
        shared = chosen[..., :64]
        assert shared.any(1).sum(-1).le(most).all()
        assert groups is None or bool((shared == shared[:, :1]).all())


def test_a_query_keeps_its_tail() -> None:
    made = fan_out(branches=3, shared=20, own=5)
    tails = torch.tensor([20, 24, 2**31 - 1], dtype=torch.int32)
    chosen = select_top_pages(torch.rand((1, 3, 25)), made, 8, tail_begin=tails, recent=2).to_bools(25)
    assert chosen[:, 0, 20:].all()
    assert chosen[:, 1:, 23:].all()
    assert chosen[..., 0].all()
    assert chosen.sum(-1).eq(8).all()


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


def test_a_hole_that_two_branches_have_is_no_shared_page() -> None:
    tables = torch.arange(132, dtype=torch.int32).view(2, 66)
    tables[:, 0] = -1
    made = plan(tables, torch.full((2,), 66 * PAGE, dtype=torch.int32))
    assert made.branches[:, 2].eq(0).all()


def test_bad_arguments() -> None:
    def rows(*numbers: int) -> Tensor:
        return torch.tensor(numbers, dtype=torch.int32)

    made = fan_out(branches=2, shared=4, own=1)
    scores = torch.rand((1, 2, 5))
    for bad_score in (-1.0, torch.nan, torch.inf):
        broken = scores.clone()
        broken[0, 1, 2] = bad_score
        with pytest.raises(ValueError, match="scores: row 1 holds a negative number, NaN or infinity"):
            select_top_pages(broken, made, 2)
    with pytest.raises(ValueError, match="page_size: got 8, expected 16"):
        select_top_pages(torch.rand((1, 2, 1)), plan(rows(0, 1).view(2, 1), rows(3, 3), page_size=8), 2)
    for budget in (0, -3, torch.tensor([1, 0], dtype=torch.int32)):
        with pytest.raises(ValueError, match=r"budget: got .*, expected (>= 1|at least 1 page)"):
            select_top_pages(scores, made, budget)
    assert select_top_pages(scores, made, 10**12).to_bools(5).all()  # beyond the pages: dense
    bad: list[tuple[dict[str, Any], str]] = [
        ({"top_p": 0.0}, "top_p: got 0.0"),
        ({"top_p": float("nan")}, "top_p: got nan"),
        ({"sink": -1}, "sink: got -1"),
        ({"recent": 0}, "recent: got 0, expected >= 1"),
        ({"tail_begin": rows(0, -1)}, r"tail_begin\[1\]: got -1, expected the index of a page"),
        ({"tail_begin": rows(0, 0, 0)}, r"tail_begin: got shape \[3\], expected \[T\] = \[2\]"),
        ({"groups": rows(0, 2)}, r"groups\[1\]: got 2, expected a number from 0 to 1"),
        ({"groups": rows(-1, 0)}, r"groups\[0\]: got -1, expected a number from 0 to 1"),
        ({"groups": rows(0, 0, 0, 0)[::2]}, r"groups: got strides \(2,\), expected a contiguous tensor"),
    ]
    for options, message in bad:
        with pytest.raises(ValueError, match=message):
            select_top_pages(scores, made, 2, **options)
    with pytest.raises(ValueError, match=r"scores: got shape \[1, 2, 4\], .* = \[1, 2, 5\]"):
        select_top_pages(scores[..., :4], made, 2)
    with pytest.raises(TypeError, match=r"scores: got torch.float64"):
        select_top_pages(scores.double(), made, 2)
    with pytest.raises(TypeError, match=r"budget: got 2\.5"):
        select_top_pages(scores, made, 2.5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"groups: got torch.int64, expected torch.int32"):
        select_top_pages(scores, made, 2, groups=rows(0, 0).long())
    with pytest.raises(TypeError, match=r"tail_begin: got int, expected a torch.Tensor"):
        select_top_pages(scores, made, 2, tail_begin=3)  # type: ignore[arg-type]
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
