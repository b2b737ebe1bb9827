"""Linear layers of few rows over weights that were packed once."""

from __future__ import annotations

import torch
from torch import Tensor

from tts_kernels import _core
from tts_kernels.ops._common import check_devices, register
from tts_kernels.packed_weight import PANEL, PackedWeight

_STORE, _ADD, _GATED = range(3)  # csrc/cpu/packed_linear_kernels.h: LinearEnd


def packed_linear(
    x: Tensor, weight: PackedWeight, *, add_to: Tensor | None = None, out: Tensor | None = None
) -> Tensor:
    """x W^T + bias, or silu(x G^T) * (x U^T) where the weight is gated; on the CPU.

    A row's bits depend on that row and the weights only, not on how many rows there are. Sums are in float32.
    bfloat16 weights are multiplied with x in float32, but at the levels `amx` and `avx512_bf16` with x
    rounded to bfloat16.

    Args:
        x: float32 or bfloat16 [T, inputs], contiguous channels.
        weight: packed.
        add_to: float32 [T, outputs], contiguous channels: to which the result is added, in place.
        out: float32 [T, weight.columns], contiguous channels: where the result goes, in place of new memory.

    Returns:
        float32 [T, outputs], `add_to` or the first columns of `out` where given.

    Raises:
        TypeError, ValueError: a dtype, device, shape or stride does not fit.
    """
    check_devices(x=x, panels=weight.panels)
    columns = weight.columns
    if add_to is None:
        if out is None:
            out = x.new_empty((len(x), columns), dtype=torch.float32)
        check_devices(x=x, out=out)
        end = _GATED if weight.gated else _STORE
    else:
        if out is not None:
            raise ValueError("out: got a tensor beside add_to, expected one of the two")
        check_devices(x=x, add_to=add_to)
        if weight.gated or columns != weight.outputs:
            raise ValueError(
                f"add_to: got a tensor, expected None: the weight is gated, or has {weight.outputs} outputs, "
                f"no multiple of {PANEL}"
            )
        out, end = add_to, _ADD
    torch.ops.tts_kernels.packed_linear.default(x, weight.panels, weight.bias, out, end)
    return out if columns == weight.outputs else out[:, : weight.outputs]


def _packed_linear_cpu(x: Tensor, panels: Tensor, bias: Tensor | None, out: Tensor, end: int) -> None:
    pairs = panels.dtype == torch.bfloat16
    _check_packed(panels, bias)
    inputs = panels.shape[1] * (2 if pairs else 1)
    if x.dtype not in (torch.float32, torch.bfloat16):
        raise TypeError(f"x: got {x.dtype}, expected torch.float32 or torch.bfloat16")
    if x.dim() != 2 or x.shape[1] != inputs or (inputs > 1 and x.stride(1) != 1):
        raise ValueError(
            f"x: got shape {list(x.shape)} and strides {x.stride()}, expected [rows, {inputs}] with "
            "contiguous channels"
        )
    columns = len(panels) * PANEL // (2 if end == _GATED else 1)
    if out.dtype != torch.float32 or out.shape != (len(x), columns) or out.stride(1) != 1:
        raise ValueError(
            f"{'add_to' if end == _ADD else 'out'}: got {out.dtype} {list(out.shape)} with strides "
            f"{out.stride()}, expected torch.float32 {[len(x), columns]} with contiguous channels"
        )
    _core.packed_linear(
        _core.TokenRows(x.data_ptr(), (x.stride(0), 0), x.element_size()),
        (len(x), inputs, len(panels)),
        panels.data_ptr(),
        pairs,
        0 if bias is None else bias.data_ptr(),
        out.data_ptr(),
        out.stride(0),
        end,
        torch.get_num_threads(),
    )


def _check_packed(panels: Tensor, bias: Tensor | None) -> None:
    inner = (PANEL, 2) if panels.dtype == torch.bfloat16 else (PANEL,)
    if panels.dtype not in (torch.float32, torch.bfloat16):
        raise TypeError(f"panels: got {panels.dtype}; make them with PackedWeight.pack")
    if panels.dim() != 2 + len(inner) or panels.shape[2:] != inner or not panels.is_contiguous():
        raise ValueError(f"panels: got shape {list(panels.shape)}; make them with PackedWeight.pack")
    if bias is not None and not (
        bias.dtype is torch.float32 and bias.shape == (len(panels) * PANEL,) and bias.is_contiguous()
    ):
        raise ValueError(
            f"bias: got {bias.dtype} {list(bias.shape)}, expected contiguous torch.float32 "
            f"[{len(panels) * PANEL}]; make it with PackedWeight.pack"
        )


def _packed_linear_fake(x: Tensor, panels: Tensor, bias: Tensor | None, out: Tensor, end: int) -> None:
    return None


register(
    "packed_linear(Tensor x, Tensor panels, Tensor? bias, Tensor(a!) out, int end) -> ()",
    cpu=_packed_linear_cpu,
    fake=_packed_linear_fake,
)
