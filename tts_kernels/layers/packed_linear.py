"""Linear layers of few rows over weights that were packed once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from .. import _core
from ..checks import Array, Number, Numbers, Rule, Signature, require_dense
from ..checks.pages import CORE_DTYPES, FLOAT32
from ..ops.operator import register
from .packed_weight import FLOAT_DTYPES, PANEL, PackedWeight, is_bfloat16, weight_arrays
from .quant_form import X_GROUP, QuantForm
from .quantised_weight import ORDER, QuantisedWeight, address_of, blocks_of, quantised_arrays
from .weight import Weight, require_weight

_STORE, _ADD, _GATED = range(3)  # csrc/cpu/kernels/packed_linear_kernels.h: LinearEnd


def _describe(pairs: bool, end: int) -> Signature:
    x = Array("x", "T, 2 * half_inputs" if pairs else "T, inputs", FLOAT_DTYPES, packed=1)
    order = replace(ORDER, absent="panels are not quantised")
    return _with_output((*weight_arrays(pairs=pairs), x, order), end)


def _describe_quantised(form: QuantForm, end: int) -> Signature:
    arguments = (
        *quantised_arrays(form),
        Array("x", "T, inputs", FLOAT_DTYPES, packed=1),
        ORDER,
        Rule("x", f"inputs % {X_GROUP} == 0 and num_blocks == {blocks_of('inputs', form)}"),
    )
    return _with_output(arguments, end)


def _with_output(arguments: tuple[Array | Rule, ...], end: int) -> Signature:
    gated = end == _GATED
    columns = f"num_panels * {PANEL}" + (" // 2" if gated else "")
    return Signature(
        *arguments,
        Array(
            "out",
            f"T, {columns}",
            FLOAT32,
            packed=1,
            written=True,
            label="add_to" if end == _ADD else "out",
        ),
        Number("end", f"{_STORE} <= end <= {_GATED}"),
        Numbers("form", default=()),
        *([Rule("panels", "num_panels % 2 == 0")] if gated else []),
        home="x",
    )


def _signature_of(values: Mapping[str, Any]) -> Signature:
    panels, form = values["panels"], values["form"]
    if isinstance(panels, Tensor) and panels.dtype == torch.uint8:
        return _describe_quantised(_form_of(tuple(form)), values["end"])
    if form:
        raise ValueError(f"form: got {form}, expected [] beside panels that are not of uint8")
    return _describe(is_bfloat16(panels), values["end"])


@lru_cache
def _form_of(numbers: tuple[int, ...]) -> QuantForm:
    return QuantForm.of(numbers)


def packed_linear(
    x: Tensor,
    weight: Weight,
    *,
    add_to: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Computes x W^T + bias, or silu(x G^T) * (x U^T) for a gated weight; on the CPU.

    A row's bits depend only on that row and the weights, not on the number of rows. Sums are in float32.
    bfloat16 weights are multiplied with x in float32, except at the levels `amx` and `avx512_bf16`, with x
    rounded to bfloat16.

    For quantised weights, a row of x becomes int8, with a scale for each 32 inputs that maps the largest to
    127. Sums within a group are exact, and groups are summed in order, in float32. A row with NaN or an
    infinity gives NaN; 32 inputs that are all below 2^-100 count as zeros. If the weights' form is `exact`, x
    is not rounded, and products are as with the dequantised weights in float32.

    Args:
        x: float32 or bfloat16 [T, inputs], contiguous channels.
        weight: packed.
        add_to: float32 [T, outputs], contiguous channels; the result is added to it, in place.
        out: float32 [T, weight.columns], contiguous channels; holds the result, instead of new memory.

    Returns:
        float32 [T, outputs]: `add_to`, or the first columns of `out`, if given.

    Raises:
        TypeError, ValueError: a dtype, device, shape or stride does not fit.
    """
    numbers: list[int] = []
    order = None
    if type(weight) is not PackedWeight:
        require_weight("weight", weight)
        if isinstance(weight, QuantisedWeight):
            numbers, order = weight.form.numbers, weight.order
            require_dense("x", x, fake=True)
            if x.dim() != 2 or x.shape[1] != weight.inputs:
                raise ValueError(
                    f"x: got shape {list(x.shape)}, expected [T, inputs] with inputs = {weight.inputs}"
                )
    if add_to is None:
        end = _GATED if weight.gated else _STORE
        if out is None:
            require_dense("x", x, fake=True)
            out = x.new_empty((*x.shape[:1], weight.columns), dtype=torch.float32)
    else:
        if out is not None:
            raise ValueError("out: got a tensor beside add_to, expected one of the two")
        if weight.gated or weight.columns != weight.outputs:
            raise ValueError(
                f"add_to: got a tensor, expected None: the weight is gated, or has {weight.outputs} outputs, "
                f"no multiple of {PANEL}"
            )
        out, end = add_to, _ADD
    _packed_linear(x, weight.panels, weight.bias, out, end, numbers, order)
    return out if weight.columns == weight.outputs else out[:, : weight.outputs]


def _multiply(a: Any) -> None:
    x, panels = a.x, a.panels
    if panels.dtype == torch.uint8:
        _core.quantised_linear(
            _core.TokenRows(x, heads=False),
            (x.shape[0], x.shape[1]),
            a.form,
            panels.data_ptr(),
            (panels.shape[0], panels.shape[1]),
            address_of(a.order),
            0 if a.bias is None else a.bias.data_ptr(),
            a.out.data_ptr(),
            a.out.stride(0),
            a.end,
            torch.get_num_threads(),
        )
        return
    _core.packed_linear(
        _core.TokenRows(x, heads=False),
        (x.shape[0], x.shape[1], panels.shape[0]),
        panels.data_ptr(),
        CORE_DTYPES[panels.dtype],
        0 if a.bias is None else a.bias.data_ptr(),
        a.out.data_ptr(),
        a.out.stride(0),
        a.end,
        torch.get_num_threads(),
    )


_packed_linear = register(
    "packed_linear",
    "x panels bias out end form order",
    _signature_of,
    _describe(pairs=False, end=_STORE),
    cpu=_multiply,
)
