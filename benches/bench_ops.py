"""Compares a decode step's operators other than attention with torch's and with the machine's limits.

Linear layers with a shape of SmolLM2 and of a model with hidden size 2048, the draw of a token from 49,152
logits, and page copies after a fork of 64 branches. It prints floors: max(bytes / bandwidth, flop / peak) of
a linear layer, one read of the logits, one read and one write of the pages; rates are measured in the same
rounds. Logits and pages may stay in a cache, which makes them faster than their floor.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch.nn.functional import linear
from tts_decode.bench.machine import Peaks
from tts_decode.cost import Machine

from benches.timing import medians, print_info
from tts_kernels import KVPool, PackedWeight, packed_linear, sample_tokens

VOCABULARY = 49152
Times = dict[str, float]


def beside_machine(calls: dict[str, Callable[[], object]], dtype: torch.dtype) -> tuple[Times, Machine]:
    """Median seconds of each call, and the machine's rates in the same rounds."""
    peaks = Peaks(dtype, torch.device("cpu"))
    seconds = medians(calls | peaks.calls, rounds=5)
    return {name: seconds[name] for name in calls}, peaks.machine(
        {name: seconds[name] for name in peaks.calls}
    )


def report(benchmark: BenchmarkFixture, seconds: Times, floor: float) -> None:
    benchmark.extra_info |= {
        "threads": torch.get_num_threads(),
        "microseconds": {name: round(value * 1e6) for name, value in seconds.items()},
        "floor_microseconds": round(floor * 1e6),
    }
    print_info(benchmark)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bfloat16", "float32"])
@pytest.mark.parametrize("rows", [1, 8, 64])
@pytest.mark.parametrize(("outputs", "inputs"), [(1536, 576), (8192, 2048)], ids=["1536x576", "8192x2048"])
def test_packed_linear(
    benchmark: BenchmarkFixture,
    outputs: int,
    inputs: int,
    rows: int,
    dtype: torch.dtype,
) -> None:
    torch.manual_seed(0)
    count = max(2, (1 << 26) // (outputs * inputs * dtype.itemsize))  # 64 MiB: weights come from memory
    weights = [torch.randn((outputs, inputs)).to(dtype) for _ in range(count)]
    packed = [PackedWeight.pack(weight) for weight in weights]
    x = torch.randn((rows, inputs)).to(dtype)

    def ours() -> None:
        for weight in packed:
            packed_linear(x, weight)

    def torchs() -> None:
        for weight in weights:
            linear(x, weight)

    t, machine = beside_machine({"packed_linear": ours, "torch": torchs}, dtype)
    floor = max(weights[0].nbytes / machine.bandwidth, 2 * rows * inputs * outputs / machine.flops)
    report(benchmark, {name: seconds / count for name, seconds in t.items()}, floor)
    benchmark.pedantic(ours, rounds=3)


@pytest.mark.parametrize("filters", [(0, 1.0), (50, 0.95)], ids=["all", "top-k, top-p"])
@pytest.mark.parametrize("rows", [1, 64])
def test_sample_tokens(benchmark: BenchmarkFixture, rows: int, filters: tuple[int, float]) -> None:
    """Beside softmax, entropy, filters and draw of torch, in float32."""
    torch.manual_seed(0)
    top_k, top_p = filters
    logits = 3 * torch.randn((rows, VOCABULARY))
    uniform = torch.rand(rows, dtype=torch.float64).tolist()
    params = torch.tensor([[1.0, top_k, top_p, 0.0, 1.0, u] for u in uniform], dtype=torch.float64)

    def torchs() -> torch.Tensor:
        log_probs = logits.log_softmax(-1)
        (log_probs.exp() * log_probs).sum(-1)
        kept = log_probs
        if top_k:
            kept = kept.masked_fill(kept < kept.topk(top_k).values[:, -1:], -torch.inf)
        if top_p < 1:
            probs, order = kept.softmax(-1).sort(descending=True)
            cut = probs.cumsum(-1) - probs >= top_p
            kept = kept.masked_fill(cut.gather(-1, order.argsort(-1)), -torch.inf)
        return log_probs.gather(-1, kept.softmax(-1).multinomial(1))

    calls = {"sample_tokens": lambda: sample_tokens(logits, params), "torch": torchs}
    t, machine = beside_machine(calls, torch.float32)
    report(benchmark, t, logits.nbytes / machine.bandwidth)
    benchmark.pedantic(sample_tokens, (logits, params), rounds=5)


def test_copy_pages(benchmark: BenchmarkFixture) -> None:
    """The last page of 64 branches in 30 layers of 3 heads, as a fork of SmolLM2's causes it."""
    pool = KVPool(num_layers=30, num_kv_heads=3, head_dim=64, num_pages=1024, dtype=torch.bfloat16)
    sources = torch.randperm(512, dtype=torch.int32)[:64]
    copies = torch.stack([sources, torch.arange(512, 576, dtype=torch.int32)], dim=1)
    t, machine = beside_machine({"copy_pages": lambda: pool.copy(copies)}, torch.bfloat16)
    report(benchmark, t, 2 * len(copies) * pool.page_bytes / machine.bandwidth)
    benchmark.pedantic(pool.copy, (copies,), rounds=5)
