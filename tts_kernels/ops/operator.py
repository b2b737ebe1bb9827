"""Registers operators with torch: schema, checks and fake implementation, all from one description."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
from typing import Any

import torch

from .._namespace import NAMESPACE
from ..checks import Footprint, Guard, Signature, SignatureOf

try:
    _LIBRARY = torch.library.Library(NAMESPACE, "DEF")  # type: ignore[no-untyped-call]
except RuntimeError as cause:
    raise ImportError(
        f"{__package__}: got torch.ops.{NAMESPACE} of another package, expected a name of its own; rename "
        "one of the two copies"
    ) from cause
# Takes an operator's arguments and results by name, and writes the results.
Kernel = Callable[[Any], None]


def register(
    op: str,
    order: str,
    signature_of: SignatureOf,
    described: Signature,
    *,
    cpu: Kernel | None = None,
    plain: Kernel | None = None,
) -> Callable[..., Any]:
    """Defines torch.ops.<namespace>.<op>; returns a function that calls it and explains torch's refusals.

    However an operator is called, its arguments are checked against their description before the kernel sees
    them. If torch's dispatcher finds no kernel (sparse, quantized or nested tensors, tensors batched by
    torch.func, a device without a kernel), the error comes from the description. A tensor that requires a
    gradient is refused, because no operator has one. Written arguments count as changed in place, so torch's
    autograd notices if it has kept such a tensor.

    Args:
        order: names of the arguments.
        signature_of: returns their description, which may depend on the dtype of the pages.
        described: one of these descriptions; makes the schema. An operator's descriptions differ in sizes and
            dtypes only.
        cpu: the kernel for the CPU. plain: the kernel for plain pages on any device.
    """
    names = order.split()
    _LIBRARY.define(described.schema(op, names))  # type: ignore[no-untyped-call]
    overload = getattr(getattr(torch.ops, NAMESPACE), op).default
    arguments = overload._schema.arguments
    written = [i for i, a in enumerate(arguments) if a.is_write]
    defaults = tuple(a.default_value for a in arguments)

    def accept(known: Footprint) -> None:
        if (plain if known.plain else cpu) is None or not (known.plain or known.device.type == "cpu"):
            raise ValueError(
                f"k_pages, v_pages: got packed pages on {known.device}, expected the CPU, or plain pages"
            )

    guard = Guard(op, names, signature_of, defaults, direct=False, accept=accept)
    named: Any = namedtuple  # mypy wants its fields as literals
    by_name = named(op, (*names, *described.result_names))
    look, wants_derivative = guard.look, guard.wants_derivative
    empty, increment_version = torch.empty, torch.autograd.graph.increment_version

    def checked(*args: Any) -> Any:
        known = look(args) or guard.settle(args)
        if len(args) < len(defaults):
            args += defaults[len(args) :]
        results = []
        for shape, dtype in known.results:
            results.append(empty(shape, dtype=dtype, device=known.device))
        kernel: Any = plain if known.plain else cpu
        kernel(by_name(*args, *results))
        if written:
            changed = []
            for i in written:
                if args[i] is not None:
                    changed.append(args[i])
            increment_version(changed)
        return results[0] if len(results) == 1 else tuple(results) or None

    def traced(*args: Any, **keywords: Any) -> Any:
        results = guard.trace(args, keywords)
        return results[0] if len(results) == 1 else tuple(results) or None

    def differentiated(*args: Any) -> Any:
        if wants_derivative(args):
            guard.refuse_gradients(args)
        with torch._C._AutoDispatchBelowAutograd():
            return overload(*args)

    def refused(*args: Any) -> Any:
        guard.explain(args)
        raise TypeError(f"{op}: got tensors that torch has no kernel of ours for, expected dense ones")

    for key in ("CPU", "CUDA") if plain else ("CPU",):
        _LIBRARY.impl(op, checked, key)  # type: ignore[no-untyped-call]
    _LIBRARY.impl(op, differentiated, "Autograd")  # type: ignore[no-untyped-call]
    for key in ("CompositeExplicitAutograd", "NestedTensorCPU", "NestedTensorCUDA", "FuncTorchBatched"):
        _LIBRARY.impl(op, refused, key)  # type: ignore[no-untyped-call]
    torch.library.register_fake(f"{NAMESPACE}::{op}", traced, lib=_LIBRARY)

    def call(*args: Any) -> Any:
        try:
            return overload(*args)
        except (RuntimeError, AssertionError) as refusal:
            guard.explain(args)
            if "allocate" in str(refusal):
                raise MemoryError(f"{op}: the system grants no memory for the result") from refusal
            raise

    return call
