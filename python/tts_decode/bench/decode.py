"""Decode steps of branches that share a prompt, compared with the minimum that the machine would need."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch.profiler import ProfilerActivity, profile

from tts_kernels.layers.decoder_layers import seconds_by_part

from ..core.params import SamplingParams
from ..core.running import gather
from ..cost.forward import Machine, ModelShape
from ..cost.search import search_cost
from ..decoding.branch import TreeBranch
from ..decoding.decoder import TreeDecoder
from .machine import Peaks
from .timing import Quartiles, quartiles

# The parts of a step. Besides these operators and the parts of `DecoderLayers`: "other operators", and
# "Python and plan" around them all.
PARTS = {
    "tts_kernels::packed_linear": "matrix products",
    "aten::mm": "matrix products",
    "aten::addmm": "matrix products",
    "mkldnn::_linear_pointwise": "matrix products",
    "tts_kernels::tree_attention": "attention",
    "tts_kernels::append_kv": "append",
    "tts_kernels::rms_norm": "norms and rotary",
    "tts_kernels::rotate_qkv": "norms and rotary",
    "tts_kernels::sample_tokens": "sampling",
}


@dataclass
class DecodeTimes:
    """Times of decode steps.

    step: seconds of a decode step of all branches. floor: its minimum at the machine's rates, if in each part
    of the step reading and computing overlap. kv_bytes: held at the end, shared pages counted once. shares:
    of the parts of a step, which add up to 1.
    """

    branches: int
    step: Quartiles
    floor: float
    kv_bytes: int
    shares: dict[str, float]

    @property
    def tokens_per_second(self) -> float:
        return self.branches / self.step.median


@dataclass
class _Measured:
    steps: list[float] = field(default_factory=list)
    kv_bytes: int = 0


def measure_decode(
    decoder: TreeDecoder,
    shape: ModelShape,
    *,
    prompt: int,
    branches: Sequence[int],
    tokens: int,
    rounds: int,
    temperature: float = 0.8,
    on_stage: Callable[[str], object] = lambda what: None,
) -> tuple[Quartiles, Machine, list[DecodeTimes]]:
    """Measures the prefill, the machine's rates, and steps for each number of branches, alternately.

    In each round a prompt of random tokens goes through the model, the branches fork from it, and each
    generates `tokens` tokens, all in the same steps. Nothing ends early.
    """
    decoder.eos_token_ids = frozenset()
    ids = torch.randint(shape.vocab, (prompt,), generator=torch.Generator().manual_seed(0)).tolist()
    sampling = SamplingParams(temperature, max_tokens=tokens + 1, max_step_tokens=tokens)
    peaks = Peaks(decoder.model.dtype, torch.device("cpu"))
    prefills: list[float] = []
    measured = {width: _Measured() for width in branches}
    peak_times: dict[str, list[float]] = {name: [] for name in peaks.calls}

    async def fork(width: int) -> list[TreeBranch]:
        begin = time.perf_counter()
        root = await decoder.root(ids, sampling)
        prefills.append(time.perf_counter() - begin)
        leaves = root.fork(width)
        root.release()
        await gather(leaf.step(max_step_tokens=1) for leaf in leaves)  # from the prompt's logits, no forward
        return leaves

    async def grow(leaves: list[TreeBranch]) -> float:
        begin = time.perf_counter()
        await gather(leaf.step() for leaf in leaves)
        return (time.perf_counter() - begin) / tokens

    def run(width: int, *, profiled: bool = False) -> dict[str, float]:
        leaves = decoder.run(fork(width))
        try:
            if profiled:
                return _shares(lambda: decoder.run(grow(leaves)))
            measured[width].steps.append(decoder.run(grow(leaves)))
            measured[width].kv_bytes = decoder.stats().resident_bytes
            return {}
        finally:
            for leaf in leaves:
                leaf.release()

    on_stage("warming up")
    shares = {width: run(width, profiled=True) for width in branches}
    prefills.clear()
    for round_ in range(rounds):
        for width in branches:
            on_stage(f"round {round_ + 1} of {rounds}, {width} branches")
            run(width)
        for name, call in peaks.calls.items():
            call()
            begin = time.perf_counter()
            call()
            peak_times[name].append(time.perf_counter() - begin)
    machine = peaks.machine({name: quartiles(seconds).median for name, seconds in peak_times.items()})
    results = []
    for width in branches:
        cost = search_cost(shape, prompt=prompt, branches=width, generated=tokens + 1)
        floor = machine.roofline_seconds(cost.decode) / cost.steps
        results.append(
            DecodeTimes(
                width, quartiles(measured[width].steps), floor, measured[width].kv_bytes, shares[width]
            )
        )
    return quartiles(prefills), machine, results


def _shares(call: Callable[[], float]) -> dict[str, float]:
    """Returns the shares of a call's time, by part."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # otherwise the profiler reports itself on stderr
    before = seconds_by_part()
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        begin = time.perf_counter()
        call()
        wall = time.perf_counter() - begin
    seconds: defaultdict[str, float] = defaultdict(float, dict.fromkeys(PARTS.values(), 0.0))
    for part, total in seconds_by_part().items():
        seconds[part] += total - before[part]
    for event in profiler.key_averages():
        seconds[PARTS.get(event.key, "other operators")] += event.self_cpu_time_total / 1e6
    seconds["Python and plan"] = max(wall - sum(seconds.values()), 0.0)
    whole = sum(seconds.values())
    return {part: value / whole for part, value in seconds.items()}
