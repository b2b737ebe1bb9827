"""Splits one product into queries, keys and values; norms and rotary position embedding of q and k."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _core
from ..checks import Array, Choice, Number, Result, Rule, Signature, dtype_of, integer, real
from ..checks.pages import FLOAT32
from ..ops.operator import register

_DTYPES = (torch.float32, torch.bfloat16)
_TAKES = Signature(
    Array("cos", "T, head_dim", FLOAT32),
    Array("sin", "T, head_dim", FLOAT32),
    Number("num_q_heads", "1 <= num_q_heads < 2**31"),
    Number("num_kv_heads", "1 <= num_kv_heads < 2**31"),
    Rule("cos, sin", "2 <= head_dim <= 256 and head_dim % 2 == 0"),
    Array("qkv", "T, (num_q_heads + 2 * num_kv_heads) * head_dim", FLOAT32, packed=1),
    Choice("dtype", _DTYPES),
    Array("q_norm", "head_dim", FLOAT32, optional=True),
    Array("k_norm", "head_dim", FLOAT32, optional=True),
    Number("eps", "2**-126 <= eps <= 2**127", float, default=1e-6),
    home="qkv",
    results=(
        Result("q", "T, num_q_heads, head_dim", "dtype"),
        Result("k", "T, num_kv_heads, head_dim", "dtype"),
        Result("v", "T, num_kv_heads, head_dim", "dtype"),
    ),
)


def rotate_qkv(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    num_q_heads: int,
    num_kv_heads: int,
    dtype: torch.dtype,
    *,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    eps: float = 1e-6,
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns queries, keys and values of T tokens, q and k rotated by their positions; on the CPU.

    Channel i of the first half of a head rotates with channel i of the second (Su et al., arXiv 2104.09864,
    in the order of `transformers`).

    Args:
        qkv: float32 [T, (num_q_heads + 2 num_kv_heads) * head_dim], concatenated; contiguous channels.
        cos, sin: float32 [T, head_dim] of each token's position.
        dtype: torch.float32 or torch.bfloat16.
        q_norm, k_norm: float32 [head_dim], weights of an RMS norm of each head before its rotation (Qwen3).
        eps: of these norms, as in `rms_norm`.

    Returns:
        q [T, num_q_heads, head_dim], k and v [T, num_kv_heads, head_dim] of `dtype`.

    Raises:
        TypeError, ValueError: a dtype, device, shape or stride does not fit.
    """
    heads = integer("num_q_heads", num_q_heads), integer("num_kv_heads", num_kv_heads)
    dtype_of("dtype", dtype, _DTYPES)
    q, k, v = _rotate_qkv(qkv, cos, sin, *heads, dtype, q_norm, k_norm, real("eps", eps))
    return q, k, v


def _rotate(a: Any) -> None:
    norms = (0 if norm is None else norm.data_ptr() for norm in (a.q_norm, a.k_norm))
    _core.rotate_qkv(
        _core.TokenRows(a.qkv, heads=False),
        (a.qkv.shape[0], a.num_q_heads, a.num_kv_heads, a.cos.shape[1]),
        a.cos.data_ptr(),
        a.sin.data_ptr(),
        (*norms, a.eps),
        _core.TokenRows(a.q),
        a.k.data_ptr(),
        a.v.data_ptr(),
        torch.get_num_threads(),
    )


_rotate_qkv = register(
    "rotate_qkv",
    "qkv cos sin num_q_heads num_kv_heads dtype q_norm k_norm eps",
    lambda _: _TAKES,
    _TAKES,
    cpu=_rotate,
)
