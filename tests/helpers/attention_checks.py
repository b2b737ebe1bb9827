"""Compares attention with its reference on the CPU: levels, shapes, tolerances, equal bits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from attention_cases import Case
from torch import Tensor

from tts_kernels import _core

LEVELS = [name for name, supported in _core.cpu_isa_levels() if supported]
PAIR_LEVELS = ("amx", "avx512_bf16", "neon_bf16")  # that multiply pairs of bfloat16
HEAD_DIMS = [32, 48, 64, 80, 96, 112, 128, 192, 256]
GROUPS = [1, 2, 3, 4, 7, 8, 16]
# Lengths that end inside pages, tiles and chunks; shared prefixes that end inside pages; several queries.
FAMILY = {
    "lengths": [1300, 1311, 1290, 1302, 40, 2100, 1296],
    "parents": [(0, 0), (0, 1296), (1, 1290), (0, 1200), (3, 40), (0, 700), (0, 1296)],
    "query_lens": [1, 12, 3, 2, 1, 40, 1],
}


def check(case: Case, level: str, **options: Any) -> None:
    _core.set_cpu_isa(level)
    assert_close(case, level, case.attend(**options), case.expected(**options))


def assert_close(case: Case, level: str, found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    """Outputs and logsumexps.

    Float32 sums of about 100 terms of logits of a few units, over int8 pages up to about 50: relative error
    1e-5 of the softmax, hence of outputs of unit size. A bfloat16 output is rounded once more, by up to 2^-8
    of it. The levels with the bfloat16 dot product round each probability by as much too, over int8 pages
    times the scale of the value: together by up to 2^-8 of the largest value.
    """
    (out, lse), (expected_out, expected_lse) = found, expected
    assert out.dtype == case.q.dtype
    bfloat16, int8 = case.q.dtype == torch.bfloat16, case.pool.dtype == torch.int8
    pairs = bfloat16 and level in PAIR_LEVELS
    largest = max(1.0, float(case.v_slots.nan_to_num(0.0).abs().max())) if int8 else 1.0
    atol = 2**-8 * largest if pairs else 5e-5 if int8 else 2e-5
    torch.testing.assert_close(out.double(), expected_out, rtol=2**-8 if bfloat16 else 1e-5, atol=atol)
    torch.testing.assert_close(lse.double(), expected_lse, rtol=1e-6, atol=2e-5)


def same_bits(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
