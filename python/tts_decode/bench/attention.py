"""One layer's attention of a decode step over a tree, compared with the machine and torch's attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from tts_kernels import KVPool, plan

from ..cost.forward import Machine
from .machine import Peaks
from .timing import Quartiles, interleaved
from .trees import PAGE, TREES, Heads, Tree

# Fan-outs of one prompt, one path without branches, then the trees that GPU kernels are measured on.
CPU_TREES = [
    *(Tree((1, branches), (2048, 64)) for branches in (8, 32, 64)),
    Tree((1,), (32768,)),
    *TREES,
]
MOST_REPLICATED = 2 << 30  # bytes of the cache with a copy per branch, above which torch is left out


@dataclass
class Case:
    """Inputs of attention.

    q: [T, q_heads, d], a query for each leaf at the end of its path. tables: int32 [T, pages]. lengths: int32
    [T].
    """

    q: Tensor
    pool: KVPool
    tables: npt.NDArray[np.int32]
    lengths: npt.NDArray[np.int32]


class AttentionTimes(NamedTuple):
    """Times of one case.

    attention, plan, sdpa: seconds of a call. sdpa is None if the replicated cache is too large. machine: its
    rates in the same rounds. num_bytes, flops: the minimum that the call has to read and compute.
    """

    attention: Quartiles
    plan: Quartiles
    sdpa: Quartiles | None
    machine: Machine
    num_bytes: int
    flops: int

    @property
    def floor(self) -> float:
        """max(bytes / bandwidth, flops / peak), seconds: only KV in a cache is read faster."""
        return max(self.num_bytes / self.machine.bandwidth, self.flops / self.machine.flops)

    @property
    def bound(self) -> str:
        """What determines the floor: "read" or "flops"."""
        return "read" if self.num_bytes / self.machine.bandwidth >= self.floor else "flops"


def make_case(tree: Tree, heads: Heads, dtype: torch.dtype, seed: int = 0) -> Case:
    """Makes keys and queries of unit variance on pages scattered at random."""
    generator = torch.Generator().manual_seed(seed)
    num_pages = tree.unique_tokens // PAGE
    pool = KVPool(
        num_layers=1,
        num_kv_heads=heads.kv,
        head_dim=heads.d,
        num_pages=num_pages,
        page_size=PAGE,
        dtype=dtype,
    )
    for slots in torch.split(torch.arange(num_pages * PAGE, dtype=torch.int32), 4096):
        k, v = torch.randn((2, len(slots), heads.kv, heads.d), generator=generator).to(dtype)
        pool.append(0, k, v, slots)
    q = torch.randn((tree.queries, heads.q, heads.d), generator=generator).to(dtype)
    lengths = np.full(tree.queries, tree.path_tokens, np.int32)
    return Case(q, pool, tree.block_tables(tree.level_pages(seed)), lengths)


def replicated(case: Case) -> tuple[Tensor, Tensor]:
    """Returns keys and values with a copy of the prefix for each branch, [T, kv_heads, path, d] each."""
    paths = [case.pool.gather(0, torch.from_numpy(table), int(case.lengths[0])) for table in case.tables]
    k, v = (torch.stack([path[i] for path in paths]).transpose(1, 2).contiguous() for i in (0, 1))
    return k, v


def measure_attention(tree: Tree, heads: Heads, dtype: torch.dtype, rounds: int = 9) -> AttentionTimes:
    """Measures attention over the tree, its plan, torch's attention, and the machine's peaks, alternately.

    torch's scaled_dot_product_attention runs over a cache replicated for each branch.
    """
    case, peaks = make_case(tree, heads, dtype), Peaks(dtype, torch.device("cpu"))
    planned = plan(case.tables, case.lengths)
    calls = {
        "attention": lambda: case.pool.attend(0, case.q, planned),
        "plan": lambda: plan(case.tables, case.lengths),
        **peaks.calls,
    }
    unshared = tree.queries * tree.path_tokens * heads.kv * 2 * heads.d * dtype.itemsize
    if unshared <= MOST_REPLICATED:
        k, v = replicated(case)
        q = case.q[:, :, None]
        calls["sdpa"] = lambda: scaled_dot_product_attention(q, k, v, enable_gqa=True)
    times = interleaved(calls, rounds)
    return AttentionTimes(
        times["attention"],
        times["plan"],
        times.get("sdpa"),
        peaks.machine({name: times[name].median for name in peaks.calls}),
        tree.min_bytes(heads, dtype.itemsize),
        tree.flops(heads),
    )
