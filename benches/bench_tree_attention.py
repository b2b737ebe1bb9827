"""Compares tree_attention with torch's attention, replicated or folded, and with the machine's limits.

64 branches on a shared prefix of 2,048 tokens with 64 tokens of their own each, one query per branch, one
layer. Peers: scaled_dot_product_attention over the cache replicated per branch; and, on the prefix alone, all
rows of a KV head folded into one matrix, through scaled_dot_product_attention and through matmul, softmax,
matmul.

All take turns, round by round, and medians are compared, so that other load on the machine affects all alike.
The limits are measured in the same rounds: flop/s of torch's float32 matrix product, for bfloat16 pages the
better of that and the bfloat16 one; bytes/s of a read of 256 MiB. The roofline of a call is max(bytes /
bandwidth, flop / peak). Without a bfloat16 dot product the bfloat16 kernel multiplies in float32, as does the
faster product.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import product

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from benches.timing import medians, print_info
from tts_kernels import KVPool, TreePlan, _core, plan, tree_attention

BRANCHES, PREFIX, PRIVATE = 64, 2048, 64
SHAPES = [(32, 8, 128), (9, 3, 64)]  # query heads, KV heads, head_dim
INT8_SHAPES = [*SHAPES, (8, 8, 128), (4, 4, 64)]
DTYPES = [torch.bfloat16, torch.float32]


@dataclass
class Setting:
    """One layer: the pool, the plans of the tree and of its prefix, and the same as torch's tensors."""

    q: Tensor  # [branches, heads, d]
    pages: tuple[Tensor, Tensor]
    tree: TreePlan
    prefix: TreePlan
    folded_q: Tensor  # [kv_heads, branches * group, d]
    prefix_k: Tensor  # [kv_heads, prefix, d]
    prefix_v: Tensor
    replicated_k: Tensor  # [branches, kv_heads, prefix + private, d]
    replicated_v: Tensor

    @property
    def flop(self) -> int:
        """Multiplications and additions of Q K^T and P V on the tree."""
        return 4 * self.q.numel() * (PREFIX + PRIVATE)

    @property
    def bytes(self) -> int:
        """Each distinct key and value once, queries and outputs."""
        kv_heads, _, d = self.prefix_k.shape
        kv = 2 * (PREFIX + BRANCHES * PRIVATE) * kv_heads * d
        return (kv + 2 * self.q.numel()) * self.q.element_size()


def make_setting(heads: int, kv_heads: int, d: int, dtype: torch.dtype) -> Setting:
    torch.manual_seed(0)
    shared, own = PREFIX // 16, PRIVATE // 16
    pool = KVPool(
        num_layers=1, num_kv_heads=kv_heads, head_dim=d, num_pages=shared + BRANCHES * own, dtype=dtype
    )
    slots = torch.arange(pool.num_pages * 16, dtype=torch.int32)
    k, v = torch.randn((2, len(slots), kv_heads, d)).to(dtype)
    pool.append(0, k, v, slots)
    own_pages = shared + torch.arange(BRANCHES * own, dtype=torch.int32).view(BRANCHES, own)
    prefix_tables = torch.arange(shared, dtype=torch.int32).expand(BRANCHES, -1).contiguous()
    tables = torch.cat([prefix_tables, own_pages], dim=1)
    ones = torch.ones(BRANCHES, dtype=torch.int32)
    q = torch.randn((BRANCHES, heads, d)).to(dtype)
    folded = q.view(BRANCHES, kv_heads, heads // kv_heads, d).transpose(0, 1).reshape(kv_heads, -1, d)
    cache = [torch.stack([pool.gather(0, table, PREFIX + PRIVATE)[i] for table in tables]) for i in (0, 1)]
    k_cache, v_cache = (t.transpose(1, 2).contiguous() for t in cache)
    return Setting(
        q,
        pool.layer(0),
        plan(tables, (PREFIX + PRIVATE) * ones),
        plan(prefix_tables, PREFIX * ones),
        folded,
        k_cache[0, :, :PREFIX].contiguous(),
        v_cache[0, :, :PREFIX].contiguous(),
        k_cache,
        v_cache,
    )


def replicated_sdpa(s: Setting) -> Tensor:
    return scaled_dot_product_attention(s.q[:, :, None], s.replicated_k, s.replicated_v, enable_gqa=True)


def folded_sdpa(s: Setting) -> Tensor:
    return scaled_dot_product_attention(s.folded_q[None], s.prefix_k[None], s.prefix_v[None])


def folded_matmul(s: Setting) -> Tensor:
    logits = torch.matmul(s.folded_q, s.prefix_k.mT) * s.q.shape[-1] ** -0.5
    return torch.matmul(logits.softmax(-1), s.prefix_v)


@pytest.mark.parametrize("dtype", DTYPES, ids=["bfloat16", "float32"])
@pytest.mark.parametrize(("heads", "kv_heads", "d"), SHAPES, ids=["32/8/128", "9/3/64"])
def test_tree_attention(
    benchmark: BenchmarkFixture, heads: int, kv_heads: int, d: int, dtype: torch.dtype
) -> None:
    s = make_setting(heads, kv_heads, d, dtype)
    n = 1024
    single, half = torch.randn((n, n)), torch.randn((n, n)).bfloat16()
    memory = torch.ones(2**26)
    t = medians(
        {
            "tree": lambda: tree_attention(s.q, *s.pages, s.tree),
            "prefix": lambda: tree_attention(s.q, *s.pages, s.prefix),
            "replicated": lambda: replicated_sdpa(s),
            "folded_sdpa": lambda: folded_sdpa(s),
            "folded_matmul": lambda: folded_matmul(s),
            "gemm_float32": lambda: single @ single,
            "gemm_bfloat16": lambda: half @ half,
            "read": lambda: memory.sum(),
        }
    )
    products = ["gemm_float32"] + ["gemm_bfloat16"] * (dtype is torch.bfloat16)
    peak = 2 * n**3 / min(t[name] for name in products)
    bandwidth = memory.nbytes / t["read"]
    roofline = max(s.bytes / bandwidth, s.flop / peak)
    benchmark.extra_info |= {
        "isa": _core.cpu_isa(),
        "threads": torch.get_num_threads(),
        "microseconds": {name: round(seconds * 1e6) for name, seconds in t.items()},
        "peak_gflops": round(peak / 1e9),
        "bandwidth_gbs": round(bandwidth / 1e9, 1),
        "roofline_fraction": round(roofline / t["tree"], 2),
        "times_replicated": round(t["replicated"] / t["tree"], 1),
        "prefix_times_folded_sdpa": round(t["folded_sdpa"] / t["prefix"], 2),
        "prefix_times_folded_matmul": round(t["folded_matmul"] / t["prefix"], 2),
    }
    print_info(benchmark)
    benchmark.pedantic(lambda: tree_attention(s.q, *s.pages, s.tree), rounds=5)


@pytest.mark.parametrize(("branches", "prefix"), [*product((1, 8, 64), (512, 2048, 4096)), (1, 32768)])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "d"), INT8_SHAPES, ids=["32/8/128", "9/3/64", "8/8/128", "4/4/64"]
)
def test_int8_pages(
    benchmark: BenchmarkFixture, heads: int, kv_heads: int, d: int, branches: int, prefix: int
) -> None:
    """The same keys, values and bfloat16 queries over int8 pages and over bfloat16 pages, in turn."""
    torch.manual_seed(0)
    shared, own = prefix // 16, PRIVATE // 16
    num_pages = shared + branches * own
    k, v = torch.randn((2, num_pages * 16, kv_heads, d)).bfloat16()
    pools = {}
    for dtype in (torch.bfloat16, torch.int8):
        pool = KVPool(num_layers=1, num_kv_heads=kv_heads, head_dim=d, num_pages=num_pages, dtype=dtype)
        pool.append(0, k, v, torch.arange(num_pages * 16, dtype=torch.int32))
        pools[str(dtype).removeprefix("torch.")] = pool
    own_pages = shared + torch.arange(branches * own, dtype=torch.int32).view(branches, own)
    prefix_tables = torch.arange(shared, dtype=torch.int32).expand(branches, -1)
    lengths = torch.full((branches,), prefix + PRIVATE, dtype=torch.int32)
    tree = plan(torch.cat([prefix_tables, own_pages], dim=1), lengths)
    q = torch.randn((branches, heads, d)).bfloat16()
    t = medians({name: partial(pool.attend, 0, q, tree) for name, pool in pools.items()})
    outs = [pool.attend(0, q, tree)[0].float() for pool in pools.values()]
    benchmark.extra_info |= {
        "isa": _core.cpu_isa(),
        "threads": torch.get_num_threads(),
        "microseconds": {name: round(seconds * 1e6) for name, seconds in t.items()},
        "int8_time": round(t["int8"] / t["bfloat16"], 2),
        "int8_bytes": round(pools["int8"].page_bytes / pools["bfloat16"].page_bytes, 3),
        "relative_error": round(((outs[1] - outs[0]).norm() / outs[0].norm()).item(), 4),
    }
    print_info(benchmark)
    benchmark.pedantic(lambda: pools["int8"].attend(0, q, tree), rounds=5)


@pytest.mark.parametrize("length", [1, 64, 2112])
def test_single_query(benchmark: BenchmarkFixture, length: int) -> None:
    """One branch: what a decode step pays per layer without any sharing (9/3/64, float32)."""
    pages = -(-length // 16)
    pool = KVPool(num_layers=1, num_kv_heads=3, head_dim=64, num_pages=pages)
    k = torch.randn((length, 3, 64))
    pool.append(0, k, k, torch.arange(length, dtype=torch.int32))
    table = torch.arange(pages, dtype=torch.int32)[None]
    one = plan(table, torch.tensor([length], dtype=torch.int32))
    q = torch.randn((1, 9, 64))
    benchmark(lambda: tree_attention(q, *pool.layer(0), one))
