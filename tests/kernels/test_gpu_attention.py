"""GPU-only properties of attention over a work list: streams, CUDA graphs, no waiting, equal bits."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from paged_cases import make_paged_case
from torch import Tensor

from benches.gpu.baselines import forced
from benches.gpu.timing import no_host_sync
from tts_kernels import (
    DevicePlan,
    DevicePlanner,
    KVTree,
    WorkCapacity,
    append_kv,
    copy_pages,
    reference,
    select_pages,
    tree_attention,
)

pytestmark = pytest.mark.gpu

PAGE, NUM_PAGES, Q_HEADS, KV_HEADS, HEAD_DIM = 16, 512, 8, 2, 128
MOST_BRANCHES = 24
CAPACITY = WorkCapacity(items=512, queries=32, merges=1024, pages=2048, partials=4096)


@pytest.fixture(params=["triton", "cuda"], autouse=True)
def _backend(request: pytest.FixtureRequest) -> Iterator[None]:
    with forced(request.param):
        yield


class Search:
    """Branches over a pool whose slots all hold random keys and values, so that growing needs no appends."""

    def __init__(self, prompt: int = 300, branches: int = 6) -> None:
        generator = torch.Generator().manual_seed(0)
        shape = (2, NUM_PAGES, KV_HEADS, PAGE, HEAD_DIM)
        self.k_pages, self.v_pages = torch.randn(shape, generator=generator).bfloat16().cuda()
        q = 2 * torch.randn((MOST_BRANCHES, Q_HEADS, HEAD_DIM), generator=generator)
        self.q = q.bfloat16().cuda()
        self.tree = KVTree(NUM_PAGES, PAGE)
        root = self.tree.create()
        self.tree.append([root], [range(prompt)])
        self.branches = self.tree.fork(root, branches)
        self.tree.release(root)
        self.grow()

    def grow(self, tokens: int = 1) -> None:
        self.tree.append(self.branches, [range(tokens)] * len(self.branches))

    def fork(self, branch: int, n: int) -> None:
        self.branches += self.tree.fork(self.branches[branch], n)
        self.grow()

    def prune(self, *branches: int) -> None:
        for branch in sorted(branches, reverse=True):
            self.tree.release(self.branches.pop(branch))

    def planner(self, capacity: WorkCapacity | None = None, workspace: Tensor | None = None) -> DevicePlanner:
        return DevicePlanner(
            num_q_heads=Q_HEADS,
            num_kv_heads=KV_HEADS,
            head_dim=HEAD_DIM,
            page_size=PAGE,
            num_pages=NUM_PAGES,
            dtype=torch.bfloat16,
            device="cuda",
            capacity=capacity,
            workspace=workspace,
        )

    def plan(self, planner: DevicePlanner) -> DevicePlan:
        return planner.update(*self.tree.block_tables(self.branches))

    def attend(self, plan: DevicePlan) -> tuple[Tensor, Tensor]:
        return tree_attention(self.q[: plan.num_queries], self.k_pages, self.v_pages, plan)

    def check(self, out: Tensor, lse: Tensor) -> None:
        """bfloat16 rounds probabilities and outputs to 2^-9 relative; outputs are of unit size."""
        tables, lengths = map(torch.from_numpy, self.tree.block_tables(self.branches))
        ones = torch.ones_like(lengths)
        slots = (pages.cpu().transpose(1, 2).flatten(0, 1) for pages in (self.k_pages, self.v_pages))
        true, true_lse, _ = reference.tree_attention(self.q.cpu()[: len(ones)], *slots, tables, lengths, ones)
        torch.testing.assert_close(out.cpu().double(), true, rtol=2**-7, atol=2**-7)
        torch.testing.assert_close(lse.cpu().double(), true_lse, rtol=1e-4, atol=1e-4)


class Captured:
    """A decode step of up to MOST_BRANCHES rows in a CUDA graph."""

    def __init__(self, search: Search, plan: DevicePlan) -> None:
        search.attend(plan)  # kernels are compiled outside the capture
        torch.cuda.synchronize()
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.out, self.lse = tree_attention(search.q, search.k_pages, search.v_pages, plan)

    def replay(self) -> tuple[Tensor, Tensor]:
        """Rows that the plan does not have are (0, -inf)."""
        self.out.fill_(torch.nan)
        self.lse.fill_(torch.nan)
        self.graph.replay()
        return self.out, self.lse


def same(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize(
    ("group", "page_size", "layout"),
    [(1, 16, "HND"), (3, 1, "NHD"), (4, 8, "vLLM"), (8, 16, "NHD"), (16, 32, "HND"), (7, 128, "vLLM")],
)
def test_both_backends_are_right(
    dtype: torch.dtype, head_dim: int, group: int, page_size: int, layout: str
) -> None:
    """A small version, for both backends, of checks that test_triton_tree_attention.py makes of one only."""
    case = make_paged_case(
        [300, 311, 290, 700, 33, 64],
        [(0, 0), (0, 296), (0, 280), (2, 290), (0, 33), (4, 30)],
        [1, 3, 1, 40, 1, 5],
        group=group,
        head_dim=head_dim,
        page_size=page_size,
        layout=layout,
        dtype=dtype,
        device=torch.device("cuda"),
    )
    plan = case.plan()
    case.check(plan)
    case.check(plan, window=37, logits_soft_cap=20.0)
    case.check(case.plan(capacity=WorkCapacity(*(2 * bound for bound in plan.capacity))))


def test_replay_while_the_tree_changes() -> None:
    search = Search()
    planner = search.planner(CAPACITY)
    captured = Captured(search, search.plan(planner))
    changes = [
        lambda: None,
        *[search.grow] * 20,
        lambda: search.fork(0, 9),
        *[lambda: search.grow(7)] * 3,
        lambda: search.fork(3, 9),
        lambda: search.prune(0, 2, 5, 6, 11, 20),
        search.grow,
        lambda: search.prune(*range(1, len(search.branches))),  # one branch is left
        lambda: search.grow(50),
    ]
    for change in changes:
        change()
        plan = search.plan(planner)
        out, lse = captured.replay()
        n = len(search.branches)
        assert same((out[:n], lse[:n]), search.attend(plan))
        assert (out[n:] == 0).all()
        assert (lse[n:] == -torch.inf).all()
        search.check(out[:n], lse[:n])


def test_nothing_makes_the_host_wait() -> None:
    search = Search()
    planner = search.planner(CAPACITY)
    captured = Captured(search, search.plan(planner))
    append = search.tree.append(search.branches, [[1]] * len(search.branches))
    slots = torch.from_numpy(append.slots).pin_memory()
    copies = torch.tensor([[0, NUM_PAGES - 1], [1, NUM_PAGES - 2]], dtype=torch.int32).pin_memory()
    k = torch.randn((len(slots), KV_HEADS, HEAD_DIM), device="cuda").bfloat16()
    with no_host_sync():
        copy_pages(search.k_pages[None], search.v_pages[None], copies.cuda(non_blocking=True))
        append_kv(k, k, search.k_pages, search.v_pages, slots.cuda(non_blocking=True))
        plan = search.plan(planner)
        eager = search.attend(plan)
        out, lse = captured.replay()
    n = len(search.branches)
    assert same((out[:n], lse[:n]), eager)
    search.check(*eager)


def test_work_runs_on_the_current_stream() -> None:
    """The queries arrive on a side stream behind a delay; whoever reads them earlier reads NaN."""
    search = Search()
    planner = search.planner()
    expected = search.attend(search.plan(planner))
    real, search.q = search.q, torch.full_like(search.q, torch.nan)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        torch.cuda._sleep(10**8)  # cycles: about 60 ms
        search.q.copy_(real)
        result = search.attend(search.plan(planner))
    side.synchronize()
    assert same(result, expected)


def test_runs_are_bitwise_equal() -> None:
    search = Search(prompt=3000, branches=20)
    plan = search.plan(search.planner())
    assert plan.num_merges > 0
    first = search.attend(plan)
    for _ in range(20):
        plan.partials.fill_(torch.nan)
        assert same(search.attend(plan), first)


def test_layouts_of_frameworks_give_the_same_bits() -> None:
    search = Search()
    plan = search.plan(search.planner())
    expected = search.attend(plan)
    k, v = search.k_pages, search.v_pages
    nhd = torch.stack([k, v]).transpose(2, 3).contiguous().transpose(2, 3)  # [2, blocks, PAGE, heads, d]
    fused = torch.cat([k, v], dim=-1)  # [blocks, heads, PAGE, 2 * d]
    interleaved = torch.stack([k, v], dim=1)  # [blocks, 2, heads, PAGE, d]
    wide = torch.empty((*search.q.shape[:2], 3 * HEAD_DIM), dtype=search.q.dtype, device="cuda")
    for k_view, v_view in (nhd, fused.split(HEAD_DIM, dim=-1), interleaved.unbind(1)):
        assert same(tree_attention(search.q[: plan.num_queries], k_view, v_view, plan), expected)
    wide[..., HEAD_DIM:-HEAD_DIM] = search.q
    q = wide[: plan.num_queries, :, HEAD_DIM:-HEAD_DIM]
    assert same(tree_attention(q, k, v, plan), expected)


def test_a_plan_that_outgrew_its_capacity() -> None:
    search = Search()
    planner = search.planner(CAPACITY._replace(queries=16))
    captured = Captured(search, search.plan(planner))
    n = len(search.branches)
    out, lse = (t[:n].clone() for t in captured.replay())
    search.fork(0, 11)
    with pytest.raises(ValueError, match="capacity"):
        search.plan(planner)
    replayed = captured.replay()
    assert same((out, lse), (replayed[0][:n], replayed[1][:n])), "the plan before stays as it was"


def test_workspace_of_the_caller() -> None:
    search = Search()
    needed = CAPACITY.workspace_bytes(KV_HEADS, HEAD_DIM)
    workspace = torch.full((needed,), 255, dtype=torch.uint8, device="cuda")
    plan = search.plan(search.planner(CAPACITY, workspace))
    addresses = range(workspace.data_ptr(), workspace.data_ptr() + needed)
    assert plan.work.data_ptr() in addresses
    assert plan.partials.data_ptr() in addresses
    search.check(*search.attend(plan))
    with pytest.raises(ValueError, match="workspace"):
        search.planner(CAPACITY, workspace[: needed - 64])
    with pytest.raises(TypeError, match="workspace"):
        search.planner(CAPACITY, workspace.cpu())


@pytest.mark.parametrize("together", [False, True])
def test_a_captured_sparse_step(together: bool) -> None:
    """Scores, selection and attention never wait for the device, and replay what a later update planned."""
    search = Search()
    planner = search.planner(CAPACITY)
    plan = search.plan(planner)
    summaries = search.k_pages.float().mean(2, keepdim=True).bfloat16()
    rows = torch.arange(MOST_BRANCHES, dtype=torch.int32, device="cuda")
    tails, groups = 18 + rows, rows % 3 if together else None

    def step(budget: int = 8) -> tuple[Tensor, Tensor]:
        selection = select_pages(search.q, summaries, plan, budget, tail_begin=tails, groups=groups)
        return tree_attention(search.q, search.k_pages, search.v_pages, plan, selection=selection)

    step()  # kernels are compiled outside the capture
    torch.cuda.synchronize()
    with no_host_sync():
        step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for change in (search.grow, lambda: search.fork(0, 9), lambda: search.prune(0, 3, 7), search.grow):
        change()
        search.plan(planner)
        for result in captured:
            result.fill_(torch.nan)
        graph.replay()
        assert same(captured, step())
    n = len(search.branches)
    everything = step(NUM_PAGES)
    search.check(everything[0][:n], everything[1][:n])
    assert not same(everything, captured)
