"""Norms and rotary position embedding of queries and keys, cut out of one product."""

from __future__ import annotations

import torch
from torch import Tensor

from tts_kernels import _core
from tts_kernels.checks import Array, Choice, Number, Rule, Signature, dtype_of, integer, real
from tts_kernels.ops._operator import register
from tts_kernels.ops._pages import CORE_DTYPES, FLOAT32

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
    Number("eps", "2**-126 <= eps <= 2**127"),
    home="qkv",
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
    """Queries, keys and values of T tokens, q and k rotated by their positions; on the CPU.

    Channel i of the first half of a head turns with channel i of the second (Su et al., arXiv 2104.09864, in
    the order of `transformers`).

    Args:
        qkv: float32 [T, (num_q_heads + 2 num_kv_heads) * head_dim], side by side; contiguous channels.
        cos, sin: float32 [T, head_dim] of each token's position.
        dtype: torch.float32 or torch.bfloat16.
        q_norm, k_norm: float32 [head_dim], weights of an RMS norm of each head before it is rotated (Qwen3).
            eps: theirs, as of `rms_norm`.

    Returns:
        q [T, num_q_heads, head_dim], k and v [T, num_kv_heads, head_dim] of `dtype`.

    Raises:
        TypeError, ValueError: a dtype, device, shape or stride does not fit.
    """
    heads = integer("num_q_heads", num_q_heads), integer("num_kv_heads", num_kv_heads)
    dtype_of("dtype", dtype, _DTYPES)
    q, k, v = _rotate_qkv(qkv, cos, sin, *heads, dtype, q_norm, k_norm, real("eps", eps))
    return q, k, v


def _rotate_qkv_cpu(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    num_q_heads: int,
    num_kv_heads: int,
    dtype: torch.dtype,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    eps: float = 1e-6,
) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = _rotate_qkv_fake(qkv, cos, sin, num_q_heads, num_kv_heads, dtype)
    _core.rotate_qkv(
        _core.TokenRows(qkv.data_ptr(), (qkv.stride(0), 0), CORE_DTYPES[qkv.dtype]),
        (qkv.shape[0], num_q_heads, num_kv_heads, cos.shape[1]),
        cos.data_ptr(),
        sin.data_ptr(),
        (0 if q_norm is None else q_norm.data_ptr(), 0 if k_norm is None else k_norm.data_ptr(), eps),
        _core.TokenRows(q.data_ptr(), (0, 0), CORE_DTYPES[dtype]),
        k.data_ptr(),
        v.data_ptr(),
        torch.get_num_threads(),
    )
    return q, k, v


def _rotate_qkv_fake(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    num_q_heads: int,
    num_kv_heads: int,
    dtype: torch.dtype,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    eps: float = 1e-6,
) -> tuple[Tensor, Tensor, Tensor]:
    def empty(heads: int) -> Tensor:
        return qkv.new_empty((qkv.shape[0], heads, cos.shape[1]), dtype=dtype)

    return empty(num_q_heads), empty(num_kv_heads), empty(num_kv_heads)


_rotate_qkv = register(
    "rotate_qkv(Tensor qkv, Tensor cos, Tensor sin, int num_q_heads, int num_kv_heads, ScalarType dtype, "
    "Tensor? q_norm=None, Tensor? k_norm=None, float eps=1e-6) -> (Tensor, Tensor, Tensor)",
    lambda _: _TAKES,
    cpu=_rotate_qkv_cpu,
    fake=_rotate_qkv_fake,
)
