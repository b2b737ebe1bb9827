"""Runs every GPU operator of every backend once on small ragged cases, under compute-sanitizer.

All data is made on the CPU, so that almost only our kernels are checked.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from benches.gpu.baselines import forced
from tts_kernels import DevicePlanner, append_kv, copy_pages, gather_kv, tree_attention

PAGE, LAYERS = 16, 2


class Small(NamedTuple):
    q_heads: int
    kv_heads: int
    head_dim: int
    branches: int


# Few rows to a page, many, and a tall tile's worth.
CASES = [Small(4, 2, 64, 3), Small(8, 1, 128, 9), Small(16, 1, 128, 30)]


def ragged(branches: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, int]:
    """Block tables and lengths of branches with three shared pages and one to three of their own each."""
    pages = rng.permutation(3 + 3 * branches).astype(np.int32)
    shared, own = pages[:3], pages[3:].reshape(branches, 3)
    tables = np.concatenate([np.tile(shared, (branches, 1)), own], axis=1)
    return tables, rng.integers(3 * PAGE + 4, 6 * PAGE + 1, branches).astype(np.int32), len(pages)


def run(small: Small, backend: str) -> None:
    rng = np.random.default_rng(0)
    tables, lengths, num_pages = ragged(small.branches, rng)
    query_lens = rng.integers(0, 4, small.branches).astype(np.int32)
    query_lens[0] = 1

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape).bfloat16().cuda()

    k_pages, v_pages = randn(2, LAYERS, num_pages, small.kv_heads, PAGE, small.head_dim)
    k, v = randn(2, small.branches, small.kv_heads, small.head_dim)
    slots = tables[np.arange(small.branches), (lengths - 1) // PAGE] * PAGE + (lengths - 1) % PAGE
    slots[-1] = -1  # padding
    append_kv(k, v, k_pages[0], v_pages[0], torch.from_numpy(slots.astype(np.int32)).cuda())
    copies = rng.permutation(num_pages).astype(np.int32)[: num_pages // 2 * 2].reshape(-1, 2)
    copy_pages(k_pages, v_pages, torch.from_numpy(copies).cuda())
    if backend == "triton":
        gather_kv(k_pages[0], v_pages[0], torch.from_numpy(tables[0]).cuda(), int(lengths[0]))

    planner = DevicePlanner(
        num_q_heads=small.q_heads,
        num_kv_heads=small.kv_heads,
        head_dim=small.head_dim,
        page_size=PAGE,
        num_pages=num_pages,
        dtype=torch.bfloat16,
        device="cuda",
    )
    plan = planner.update(tables, lengths, query_lens)
    q = randn(int(query_lens.sum()), small.q_heads, small.head_dim)
    tree_attention(q, k_pages[1], v_pages[1], plan)
    tree_attention(q, k_pages[1], v_pages[1], plan, window=20, logits_soft_cap=30.0)
    torch.cuda.synchronize()


if __name__ == "__main__":
    for backend in ("triton", "cuda"):
        for small in CASES:
            with forced(backend):
                run(small, backend)
            print(backend, small, flush=True)
