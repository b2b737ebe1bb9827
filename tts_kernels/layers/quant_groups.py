"""Integers in groups that share a scale and a zero point, as quantised matrices: the same weights.

So do checkpoints of GPTQ, AWQ and compressed-tensors have them. Their groups are longer than those of the
kernel, whose scales repeat.
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
    ("numbers", "scales", "zeros", "bias"),
    lambda _: Signature(
        Array("numbers", "outputs, inputs", _BYTES, packed=0),
        Array("scales", "outputs, groups", tuple(_SCALES), packed=0),
        Array("zeros", "outputs, groups", _BYTES, packed=0, optional=True),
        BIAS,
        Rule("numbers", f"outputs >= 1 and inputs >= 1 and inputs % {X_GROUP} == 0"),
        Rule("scales", "groups >= 1 and inputs % groups == 0 and inputs // groups % 16 == 0"),
        home="numbers",
    ),
)


def groups_of(
    numbers: Tensor, scales: Tensor, zeros: Tensor | int, bits: int, bias: Tensor | None
) -> tuple[QuantForm, ReadRows]:
    """The form, and what reads rows; arguments and errors as of `QuantisedWeight.from_groups`."""
    integer("bits", bits, 4, 8)
    middle = 1 << (bits - 1)  # what zero points are less where they are packed
    offset = middle if isinstance(zeros, Tensor) else integer("zeros", zeros, 0, 255)
    _GUARD.check((numbers, scales, zeros if isinstance(zeros, Tensor) else None, bias))
    require_cpu("numbers", numbers)
    each = numbers.shape[1] // scales.shape[1]
    group = 32 if each % 32 == 0 else 16
    form = QuantForm(bits, group, _SCALES[scales.dtype], offset=offset, has_zeros=isinstance(zeros, Tensor))
    _require_scales(scales, bits)

    def read(rows: slice) -> QuantMatrix:
        _require_bits("numbers", numbers[rows], bits)
        wide = scales[rows].repeat_interleave(each // group, 1)
        if not isinstance(zeros, Tensor):
            return QuantMatrix(numbers[rows], wide)
        _require_bits("zeros", zeros[rows], bits)
        shifts = (zeros[rows].to(torch.int16) - middle).to(torch.int8)
        return QuantMatrix(numbers[rows], wide, zeros=shifts.repeat_interleave(each // group, 1))

    return form, read


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
