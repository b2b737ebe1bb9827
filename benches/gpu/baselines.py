"""The compared methods: our kernels, and others on the same pages. Each function prepares one for a case.

It returns a call without arguments that gives the outputs [T, q_heads, d]; all possible planning and layout
is done beforehand. `LeftOutError` says why a method does not serve the case. Other packages are imported only
on demand.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from tts_decode.bench.trees import PAGE, Heads, Tree

from tts_kernels import DevicePlanner, WorkCapacity, tree_attention
from tts_kernels.backends import choice

Call = Callable[[], Tensor]
WORKSPACE_BYTES = 512 << 20  # of FlashInfer, four times what it recommends: partial results of 1,024 queries


class LeftOutError(Exception):
    """The method is not measured on this case; the message says why."""


@dataclass
class Case:
    """One layer of bfloat16 KV and one query for each leaf of the tree, at the end of its path.

    q: [T, q_heads, d]. k_pages, v_pages: [pages, kv_heads, PAGE, d], those of the tree, then one more for
    each leaf to grow into. levels, tables: see `Tree`.
    """

    tree: Tree
    heads: Heads
    q: Tensor
    k_pages: Tensor
    v_pages: Tensor
    levels: list[npt.NDArray[np.int32]]
    tables: npt.NDArray[np.int32]

    @property
    def lengths(self) -> npt.NDArray[np.int32]:
        return np.full(self.tree.queries, self.tree.path_tokens, np.int32)

    def step(self, number: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        """Block tables and lengths of a later decode step, numbered from 0; the tails start anew after 15."""
        own = np.arange(len(self.k_pages) - self.tree.queries, len(self.k_pages), dtype=np.int32)
        return np.column_stack([self.tables, own]), self.lengths + np.int32(1 + number % (PAGE - 1))

    def index(self, values: object) -> Tensor:
        """An int32 tensor beside q."""
        return torch.as_tensor(values, dtype=torch.int32, device=self.q.device)


def make_case(tree: Tree, heads: Heads, device: str) -> Case:
    levels = tree.level_pages()
    pages = (tree.unique_tokens // PAGE + tree.queries, heads.kv, PAGE, heads.d)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.bfloat16, device=device)

    # Keys and queries of unit variance: logits of unit variance, so that every token counts.
    q = randn(tree.queries, heads.q, heads.d)
    return Case(tree, heads, q, randn(*pages), randn(*pages), levels, tree.block_tables(levels))


def planner(case: Case, capacity: WorkCapacity | None = None) -> DevicePlanner:
    return DevicePlanner(
        num_q_heads=case.heads.q,
        num_kv_heads=case.heads.kv,
        head_dim=case.heads.d,
        page_size=PAGE,
        num_pages=len(case.k_pages),
        dtype=case.q.dtype,
        device=case.q.device,
        capacity=capacity,
    )


def ours(case: Case, on: str) -> Call:
    with forced(on):
        plan = planner(case).update(case.tables, case.lengths)

    def call() -> Tensor:
        with forced(on):
            return tree_attention(case.q, case.k_pages, case.v_pages, plan)[0]

    return call


@contextmanager
def forced(name: str) -> Iterator[None]:
    """Our operators and planners choose that backend."""
    before = os.environ.get("TTS_KERNELS_BACKEND")
    os.environ["TTS_KERNELS_BACKEND"] = name
    _forget_choices()
    try:
        yield
    finally:
        del os.environ["TTS_KERNELS_BACKEND"]
        if before is not None:
            os.environ["TTS_KERNELS_BACKEND"] = before
        _forget_choices()


def _forget_choices() -> None:
    """The environment is read once otherwise."""
    choice.choose.cache_clear()
    choice._launcher.cache_clear()


def flashinfer_decode(case: Case, *, tensor_cores: bool) -> Call:
    """Paged decode, every branch by itself; pages are shared physically."""
    import flashinfer

    branches, pages = case.tables.shape
    workspace = torch.empty(WORKSPACE_BYTES, dtype=torch.uint8, device=case.q.device)
    wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(workspace, "HND", use_tensor_cores=tensor_cores)
    return _planned(
        case,
        wrapper,
        case.index(np.arange(branches + 1) * pages),
        case.index(case.tables.reshape(-1)),
        case.index(np.full(branches, PAGE)),
    )


def _planned(case: Case, wrapper: Any, *indices: object) -> Call:
    """A wrapper of FlashInfer behind its plan; indices: pages of each request, as the wrapper takes them."""
    heads = case.heads
    dtypes = {"q_data_type": case.q.dtype, "kv_data_type": case.k_pages.dtype}
    wrapper.plan(*indices, heads.q, heads.kv, heads.d, PAGE, **dtypes)
    return lambda: wrapper.run(case.q, (case.k_pages, case.v_pages))


def flashinfer_cascade(case: Case) -> Call:
    """One launch for each level of the tree, then merges."""
    import flashinfer

    workspace = torch.empty(WORKSPACE_BYTES, dtype=torch.uint8, device=case.q.device)
    wrapper = flashinfer.MultiLevelCascadeAttentionWrapper(len(case.levels), workspace, "HND")
    queries = case.tree.queries
    return _planned(
        case,
        wrapper,
        [case.index(np.arange(len(level) + 1) * (queries // len(level))) for level in case.levels],
        [case.index(np.arange(len(level) + 1) * level.shape[1]) for level in case.levels],
        [case.index(level.reshape(-1)) for level in case.levels],
        [case.index(np.full(len(level), PAGE)) for level in case.levels],
    )


def flex_attention(case: Case, *, compiled: bool = True) -> Call:
    """All leaves as one sequence over the unique KV, level after level; a leaf sees the nodes above it."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    # Token j may be seen by the leaves first[j] <= i < end[j].
    spans = []
    for level in case.levels:
        leaves = case.tree.queries // len(level)
        first = np.arange(len(level)).repeat(level.shape[1] * PAGE) * leaves
        spans.append(np.stack([first, first + leaves]))
    first, end = case.index(np.concatenate(spans, axis=1))

    def below(_batch: Tensor, _head: Tensor, leaf: Tensor, token: Tensor) -> Tensor:
        return (leaf >= first[token]) & (leaf < end[token])

    pages = case.index(np.concatenate([level.reshape(-1) for level in case.levels]))
    k, v = (t[pages].transpose(0, 1).flatten(1, 2)[None] for t in (case.k_pages, case.v_pages))
    q = case.q.transpose(0, 1)[None].contiguous()
    mask = create_block_mask(below, None, None, q.shape[2], k.shape[2], device=q.device)
    torch._dynamo.reset()  # else a few shapes later the limit of recompilations is met
    attend = torch.compile(flex_attention, dynamic=False) if compiled else flex_attention
    return lambda: attend(q, k, v, block_mask=mask, enable_gqa=True)[0].transpose(0, 1)


def sdpa(case: Case) -> Call:
    """torch's attention over a cache replicated for each branch, the heads of a GQA group as rows of one."""
    (branches, pages), kv_heads = case.tables.shape, case.heads.kv
    shape = (branches, kv_heads, pages * PAGE, case.heads.d)
    needed = 2 * int(np.prod(shape)) * case.k_pages.itemsize
    if case.q.is_cuda:
        torch.cuda.empty_cache()
    if case.q.is_cuda and needed > 0.9 * torch.cuda.mem_get_info()[0]:
        raise LeftOutError(f"the replicated cache takes {needed / 1e9:.0f} GB, more than is free")
    k, v = (torch.empty(shape, dtype=case.q.dtype, device=case.q.device) for _ in range(2))
    for branch, table in enumerate(case.index(case.tables)):
        k[branch] = case.k_pages[table].transpose(0, 1).flatten(1, 2)
        v[branch] = case.v_pages[table].transpose(0, 1).flatten(1, 2)
    q = case.q.view(branches, kv_heads, -1, case.heads.d)
    attend = torch.nn.functional.scaled_dot_product_attention
    return lambda: attend(q, k, v).reshape(case.q.shape)


def graphed(call: Call) -> Call:
    """The replay of a CUDA graph of one call."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = call()

    def replay() -> Tensor:
        graph.replay()
        return out

    return replay
