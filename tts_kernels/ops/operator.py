"""Registration with torch: an operator's schema, the description of its arguments, its kernels, its fake."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..checks import Guard, SignatureOf

_LIBRARY = torch.library.Library("tts_kernels", "DEF")  # type: ignore[no-untyped-call]


def register(
    schema: str,
    signature_of: SignatureOf,
    *,
    cpu: Callable[..., Any],
    cuda: Callable[..., Any] | None = None,
    fake: Callable[..., Any],
) -> Callable[..., Any]:
    """Defines torch.ops.tts_kernels.<name>; returns what calls it and says in our words why torch refuses.

    However an operator is called, its arguments meet their description before its kernel meets them. Where
    torch's dispatcher leads to no kernel (tensors that are sparse, quantized, nested, batched by torch.func,
    on a device without a kernel) the description says why, and a tensor that requires a gradient is refused,
    as nothing here has one. What is written counts as changed in place: torch's autograd notices where it has
    kept such a tensor. `fake` makes empty outputs, for tracing.
    """
    name = schema.split("(", 1)[0]
    op, _, variant = name.partition(".")
    _LIBRARY.define(schema)  # type: ignore[no-untyped-call]
    overload = getattr(getattr(torch.ops.tts_kernels, op), variant or "default")
    arguments = overload._schema.arguments
    written = [i for i, a in enumerate(arguments) if a.is_write]
    guard = Guard(op, [a.name for a in arguments], signature_of, [a.default_value for a in arguments])

    def guarded(kernel: Callable[..., Any]) -> Callable[..., Any]:
        def checked(*args: Any) -> Any:
            guard.check(args)
            results = kernel(*args)
            if written:
                changed = [args[i] for i in written if i < len(args) and args[i] is not None]
                torch.autograd.graph.increment_version(changed)
            return results

        return checked

    def traced(*args: Any, **keywords: Any) -> Any:
        guard.check_kinds(args, keywords)
        return fake(*args, **keywords)

    def differentiated(*args: Any) -> Any:
        guard.refuse_gradients(args)
        with torch._C._AutoDispatchBelowAutograd():
            return overload(*args)

    def refused(*args: Any) -> Any:
        guard.explain(args)
        raise TypeError(f"{op}: got tensors that torch has no kernel of ours for, expected dense ones")

    _LIBRARY.impl(name, guarded(cpu), "CPU")  # type: ignore[no-untyped-call]
    if cuda is not None:
        _LIBRARY.impl(name, guarded(cuda), "CUDA")  # type: ignore[no-untyped-call]
    _LIBRARY.impl(name, differentiated, "Autograd")  # type: ignore[no-untyped-call]
    for key in ("CompositeExplicitAutograd", "NestedTensorCPU", "NestedTensorCUDA", "FuncTorchBatched"):
        _LIBRARY.impl(name, refused, key)  # type: ignore[no-untyped-call]
    torch.library.register_fake(f"tts_kernels::{name}", traced, lib=_LIBRARY)

    def call(*args: Any) -> Any:
        try:
            return overload(*args)
        except (RuntimeError, AssertionError) as refusal:
            guard.explain(args)
            if "allocate" in str(refusal):
                raise MemoryError(f"{op}: the system grants no memory for the result") from refusal
            raise

    return call
