"""Reads integers in groups that share a scale and a zero point as quantised matrices: the same weights.

Checkpoints of GPTQ, AWQ and compressed-tensors store them so. Their groups are longer than the kernel's,
whose scales repeat.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..checks import Array, Guard, Rule, Signature, integer
from .packed_weight import BIAS, require_cpu
from .quant_form import X_GROUP, QuantForm
from .quant_panels import QuantMatrix, ReadRows

_SCALES = {torch.float16: "float16", torch.bfloat16: "bfloat16", torch.float32: "float32"}
_BYTES = (torch.uint8,)
_GUARD = Guard(
    "from_groups",
    ("numbers", "scales", "zeros", "bias", "group_of"),
    lambda _: Signature(
        Array("numbers", "outputs, inputs", _BYTES, packed=0),
        Array("scales", "outputs, groups", tuple(_SCALES), packed=0),
        Array("zeros", "outputs, groups", _BYTES, packed=0, optional=True),
        BIAS,
        Array("group_of", "inputs", (torch.int32, torch.int64), packed=0, optional=True),
        Rule("numbers", f"outputs >= 1 and inputs >= 1 and inputs % {X_GROUP} == 0"),
        Rule("scales", "groups >= 1 and inputs % groups == 0 and inputs // groups % 16 == 0"),
        home="numbers",
    ),
)


def groups_of(
    numbers: Tensor,
    scales: Tensor,
    zeros: Tensor | int,
    bits: int,
    bias: Tensor | None,
    group_of: Tensor | None,
) -> tuple[QuantForm, ReadRows, Tensor | None]:
    """Returns the form, a row reader, and the order in which it has the inputs.

    The order is int32 [inputs], or None for their own. Arguments and errors are those of
    `QuantisedWeight.from_groups`.
    """
    integer("bits", bits, 4, 8)
    middle = 1 << (bits - 1)  # subtracted from zero points when they are packed
    offset = middle if isinstance(zeros, Tensor) else integer("zeros", zeros, 0, 255)
    _GUARD.check((numbers, scales, zeros if isinstance(zeros, Tensor) else None, bias, group_of))
    require_cpu("numbers", numbers)
    each = numbers.shape[1] // scales.shape[1]
    group = 32 if each % 32 == 0 else 16
    form = QuantForm(bits, group, _SCALES[scales.dtype], offset=offset, has_zeros=isinstance(zeros, Tensor))
    _require_scales(scales, bits)
    order = None if group_of is None else _order_of(group_of, scales.shape[1])

    def read(rows: slice) -> QuantMatrix:
        u = numbers[rows] if order is None else numbers[rows].index_select(1, order)
        _require_bits("numbers", u, bits)
        wide = scales[rows].repeat_interleave(each // group, 1)
        if not isinstance(zeros, Tensor):
            return QuantMatrix(u, wide)
        _require_bits("zeros", zeros[rows], bits)
        shifts = (zeros[rows].to(torch.int16) - middle).to(torch.int8)
        return QuantMatrix(u, wide, zeros=shifts.repeat_interleave(each // group, 1))

    return form, read, order


def _order_of(group_of: Tensor, groups: int) -> Tensor | None:
    """Returns int32 [inputs]: the inputs of the first group, in order, then those of the next.

    None if they already are in this order.
    """
    least, most = int(group_of.min()), int(group_of.max())
    if least < 0 or most >= groups:
        raise ValueError(f"group_of: got {least} to {most}, expected 0 <= group < {groups}")
    sizes = torch.bincount(group_of, minlength=groups)
    if (sizes != sizes[0]).any():
        raise ValueError(
            f"group_of: got groups of {int(sizes.min())} to {int(sizes.max())} inputs, expected "
            f"{len(group_of) // groups} in each"
        )
    order = torch.argsort(group_of, stable=True)
    return None if torch.equal(order, torch.arange(len(order), device=order.device)) else order.int()


def _require_scales(scales: Tensor, bits: int) -> None:
    if not (scales.float().abs() * (1 << bits)).isfinite().all():
        raise ValueError(
            f"scales: got NaN, infinity or what float32 does not hold {1 << bits} times, expected finite "
            "numbers; the data are damaged, fetch them again"
        )


def _require_bits(name: str, numbers: Tensor, bits: int) -> None:
    largest = int(numbers.amax())
    if largest >= 1 << bits:
        raise ValueError(f"{name}: got {largest}, expected integers of {bits} bits")
