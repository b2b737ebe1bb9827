"""Compile-time configuration of the attention kernels: tile sizes, dtypes, and factors of the logits."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from ...backends.launch import AttentionOptions

LOG2_E = math.log2(math.e)

# A GPU computes in the storage dtype. Triton's interpreter silently multiplies the bits of bfloat16 as
# integers, so there everything is computed in float32.
INTERPRETED = bool(triton.knobs.runtime.interpret)
COMPUTE = {
    dtype: tl.float32 if INTERPRETED else compiled
    for dtype, compiled in (
        (torch.float32, tl.float32),
        (torch.float16, tl.float16),
        (torch.bfloat16, tl.bfloat16),
    )
}


class LaunchConfig(NamedTuple):
    """Tokens per step, also for a tile of 128 rows, and the tallest tile that is computed at once."""

    block_n: int
    tall_block_n: int
    max_block_m: int
    num_warps: int
    num_stages: int


# By head_dim rounded up to a power of two and by bytes of an element. Nothing is measured yet: the choice
# rests on what the compiler reports. Triton spreads num_stages over the loads of page ids and those of K
# and V that depend on them: 3 stages load K and V one step ahead of their use into 2 buffers, 5 two steps
# ahead into 3. These buffers of block_n * head_dim elements and q, from 64 rows on, fill the shared memory.
# An SM of sm_80 has 164 KiB, of sm_90 228 KiB, and two programs on an SM hide each other's start and end:
#   64: 3 * (8 + 8) KiB + 64 rows of q = 56 KiB; at 128 rows, steps of 64 tokens overflow the registers
#   128: 2 * (16 + 16) KiB + 64 rows of q = 80 KiB; the same at 128 rows
#   256: 3 * (16 + 16) KiB + 64 rows of q = 128 KiB; 8 warps, for the registers of 64 rows of 256 channels
# Products of float32 have no tensor cores and unroll to single instructions: tiles go 16 rows at a time.
_CONFIGS = {
    (64, 2): LaunchConfig(64, 32, 128, 4, 5),
    (128, 2): LaunchConfig(64, 32, 128, 4, 3),
    (256, 2): LaunchConfig(32, 32, 64, 8, 5),
    (64, 4): LaunchConfig(32, 32, 16, 4, 3),
    (128, 4): LaunchConfig(32, 32, 16, 4, 3),
    (256, 4): LaunchConfig(32, 32, 16, 8, 3),
}


def launch_config(head_dim: int, itemsize: int) -> LaunchConfig:
    return _CONFIGS[max(64, triton.next_power_of_2(head_dim)), itemsize]


def logit_factors(options: AttentionOptions) -> tuple[float, float]:
    """Returns (a, b): the logit over ln 2 of a product s is b * s, or b * tanh(a * s / (2 log2 e))."""
    if options.soft_cap > 0:
        return options.scale / options.soft_cap * 2 * LOG2_E, options.soft_cap * LOG2_E
    return 1.0, options.scale * LOG2_E
