"""Norms and rotary position embedding of queries and keys, cut out of one product."""

from __future__ import annotations

import torch
from torch import Tensor

from tts_kernels import _core
from tts_kernels.ops._common import check_devices, register


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
    check_devices(qkv=qkv, cos=cos, sin=sin)
    q, k, v = torch.ops.tts_kernels.rotate_qkv.default(
        qkv, cos, sin, num_q_heads, num_kv_heads, dtype, q_norm, k_norm, eps
    )
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
    if dtype not in (torch.float32, torch.bfloat16):
        raise TypeError(f"dtype: got {dtype}, expected torch.float32 or torch.bfloat16")
    for name, tensor in (("qkv", qkv), ("cos", cos), ("sin", sin)):
        if tensor.dtype != torch.float32:
            raise TypeError(f"{name}: got {tensor.dtype}, expected torch.float32")
    if num_q_heads < 1 or num_kv_heads < 1:
        raise ValueError(
            f"num_q_heads, num_kv_heads: got {num_q_heads} and {num_kv_heads}, expected 1 or more"
        )
    width = (num_q_heads + 2 * num_kv_heads) * cos.shape[-1]
    if qkv.dim() != 2 or qkv.shape != (cos.shape[0], width) or qkv.stride(1) != 1:
        raise ValueError(
            f"qkv: got shape {list(qkv.shape)} and strides {qkv.stride()}, expected [T, {width}] with "
            f"contiguous channels beside cos {list(cos.shape)}"
        )
    if cos.dim() != 2 or cos.shape != sin.shape or not (cos.is_contiguous() and sin.is_contiguous()):
        raise ValueError(
            f"cos, sin: got shapes {list(cos.shape)} and {list(sin.shape)}, expected contiguous [T, head_dim]"
        )
    for name, norm in (("q_norm", q_norm), ("k_norm", k_norm)):
        if norm is not None and (norm.dtype, norm.shape, norm.stride()) != (
            torch.float32,
            cos.shape[1:],
            (1,),
        ):
            raise ValueError(
                f"{name}: got {norm.dtype} of shape {list(norm.shape)} and strides {norm.stride()}, expected "
                f"contiguous float32 [{cos.shape[1]}]"
            )
    if not 0 < eps < float("inf"):
        raise ValueError(f"eps: got {eps}, expected a positive finite number")
    q, k, v = _rotate_qkv_fake(qkv, cos, sin, num_q_heads, num_kv_heads, dtype)
    _core.rotate_qkv(
        _core.TokenRows(qkv.data_ptr(), (qkv.stride(0), 0), 4),
        (qkv.shape[0], num_q_heads, num_kv_heads, cos.shape[1]),
        cos.data_ptr(),
        sin.data_ptr(),
        (0 if q_norm is None else q_norm.data_ptr(), 0 if k_norm is None else k_norm.data_ptr(), eps),
        _core.TokenRows(q.data_ptr(), (0, 0), q.element_size()),
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


register(
    "rotate_qkv(Tensor qkv, Tensor cos, Tensor sin, int num_q_heads, int num_kv_heads, ScalarType dtype, "
    "Tensor? q_norm=None, Tensor? k_norm=None, float eps=1e-6) -> (Tensor, Tensor, Tensor)",
    cpu=_rotate_qkv_cpu,
    fake=_rotate_qkv_fake,
)
