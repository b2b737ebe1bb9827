"""rms_norm and rotate_qkv against their float64 specifications, at every instruction-set level."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from attention_checks import LEVELS
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tts_kernels import _core, reference, rms_norm, rotate_qkv

pytestmark = pytest.mark.usefixtures("one_thread")


def random(seed: int, rows: int, width: int, apart: int) -> Tensor:
    """Rows with `apart` channels between them that must not be read."""
    storage = torch.full((rows, width + apart), torch.nan)
    storage[:, :width] = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))
    return storage[:, :width]


@pytest.mark.parametrize("level", LEVELS)
@given(
    rows=st.integers(0, 70),
    width=st.integers(1, 700),
    apart=st.integers(0, 3),
    size=st.sampled_from([1e-6, 1.0, 1e6]),
    seed=st.integers(0, 2**31),
)
def test_rms_norm(level: str, rows: int, width: int, apart: int, size: float, seed: int) -> None:
    _core.set_cpu_isa(level)
    x, weight = random(seed, rows, width, apart) * size, torch.randn(width)
    out = rms_norm(x, weight, 1e-5)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out.double(), reference.rms_norm(x, weight, 1e-5), rtol=2e-6, atol=1e-12)
    for row in range(0, rows, 9):
        assert torch.equal(rms_norm(x[row : row + 1], weight, 1e-5)[0], out[row])


@pytest.mark.parametrize("level", LEVELS)
@given(
    tokens=st.integers(0, 70),
    heads=st.tuples(st.integers(1, 9), st.integers(1, 4)),
    head_dim=st.sampled_from([2, 32, 48, 64, 80, 128, 256]),
    apart=st.integers(0, 3),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    normed=st.sampled_from([(), ("q_norm",), ("q_norm", "k_norm")]),
    seed=st.integers(0, 2**31),
)
def test_rotate_qkv(
    level: str,
    tokens: int,
    heads: tuple[int, int],
    head_dim: int,
    apart: int,
    dtype: torch.dtype,
    normed: tuple[str, ...],
    seed: int,
) -> None:
    _core.set_cpu_isa(level)
    qkv = random(seed, tokens, (heads[0] + 2 * heads[1]) * head_dim, apart)
    angles = torch.rand(tokens, head_dim) * 100
    norms = {name: torch.randn(head_dim) for name in normed}
    found = rotate_qkv(qkv, angles.cos(), angles.sin(), *heads, dtype, eps=1e-5, **norms)
    expected = reference.rotate_qkv(qkv, angles.cos(), angles.sin(), *heads, eps=1e-5, **norms)
    near = {"rtol": 2**-8, "atol": 1e-6} if dtype == torch.bfloat16 else {"rtol": 1e-6, "atol": 1e-6}
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == dtype
        torch.testing.assert_close(ours.double(), theirs, **near)


def test_opcheck() -> None:
    torch.library.opcheck(torch.ops.tts_kernels.rms_norm.default, (torch.randn(3, 20), torch.randn(20), 1e-5))
    angles = torch.rand(3, 32)
    tensors = torch.randn(3, 128), angles, angles
    rotate = torch.ops.tts_kernels.rotate_qkv.default
    torch.library.opcheck(rotate, (*tensors, 2, 1, torch.bfloat16))
    torch.library.opcheck(rotate, (*tensors, 2, 1, torch.float32, torch.randn(32), torch.randn(32), 1e-5))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: rms_norm(torch.zeros(2, 4).double(), torch.zeros(4), 1e-5), TypeError, "got torch.float64"),
        (
            lambda: rms_norm(torch.zeros(2, 4), torch.zeros(5), 1e-5),
            ValueError,
            r"weight: got shape \[5\], expected \[n\] = \[4\] with n = 4 \(as x has\)",
        ),
        (lambda: rms_norm(torch.zeros(4, 2).T, torch.zeros(4), 1e-5), ValueError, "contiguous channels"),
        (lambda: rms_norm(torch.zeros(2, 4), torch.zeros(4), 0.0), ValueError, "eps: got 0.0"),
        (lambda: rotate(torch.zeros(3, 127)), ValueError, r"qkv: got shape \[3, 127\].*= \[3, 128\]"),
        (lambda: rotate(torch.zeros(2, 128)), ValueError, r"qkv: got shape \[2, 128\]"),
        (lambda: rotate(torch.zeros(3, 128).double()), TypeError, "qkv: got torch.float64"),
        (lambda: rotate(torch.zeros(3, 128), torch.float16), TypeError, "dtype: got torch.float16"),
        (lambda: rotate(torch.zeros(3, 12), cos=torch.zeros(3, 3)), ValueError, "cos, sin: got head_dim = 3"),
        (lambda: rotate(torch.zeros(3, 128), q_norm=torch.zeros(31)), ValueError, r"q_norm: got .*\[31\]"),
        (
            lambda: rotate(torch.zeros(3, 128), k_norm=torch.zeros(32).double()),
            TypeError,
            "k_norm: got .*64",
        ),
        (lambda: rotate(torch.zeros(3, 128), eps=0.0), ValueError, "eps: got 0.0"),
    ],
)
def test_bad_arguments(call, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def rotate(
    qkv: Tensor, dtype: torch.dtype = torch.float32, cos: Tensor | None = None, **options: Any
) -> object:
    cos = torch.zeros(3, 32) if cos is None else cos
    return rotate_qkv(qkv, cos, cos, 2, 1, dtype, **options)
