"""The description of one tensor argument, and the check that a tensor has memory to point at."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from types import CodeType
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from .memory import contiguous
from .values import listed_dtypes

Sizes = dict[str, int]


@dataclass(frozen=True)
class Array:
    """A tensor argument.

    Attributes:
        shape: sizes, separated by commas: names, each one number throughout a signature, and expressions of
            such names and of the signature's numbers.
        dtypes: those that are served.
        like: argument that has the same dtype.
        packed: trailing dimensions that are contiguous among themselves; None: all are.
        written: changed in place; then no two elements have one address, and no other argument shares memory.
        optional: None is allowed too.
        absent: the reason, if None is the only value allowed.
        label: the name in an error, if callers know the argument by another one.
    """

    name: str
    shape: str
    dtypes: tuple[torch.dtype, ...]
    like: str | None = None
    packed: int | None = None
    written: bool = False
    optional: bool = False
    absent: str = ""
    label: str = ""

    @property
    def title(self) -> str:
        return self.label or self.name

    @cached_property
    def sizes(self) -> tuple[str, ...]:
        return tuple(size.strip() for size in self.shape.split(","))

    def check_kind(self, tensor: Any) -> None:
        """Checks the dtype and number of dimensions of a dense tensor."""
        if tensor.dtype not in self.dtypes:
            raise TypeError(f"{self.title}: got {tensor.dtype}, expected {listed_dtypes(self.dtypes)}")
        if tensor.dim() != len(self.sizes):
            raise ValueError(f"{self.title}: got shape {list(tensor.shape)}, expected [{self.shape}]")

    def bind(self, tensor: Tensor, sizes: Sizes, origins: dict[str, str]) -> None:
        """Records the sizes that no earlier argument named."""
        for size, found in zip(self.sizes, tensor.shape, strict=True):
            if size.isidentifier() and size not in sizes:
                sizes[size] = found
                origins[size] = self.title

    def check_layout(self, tensor: Tensor, sizes: Sizes, origins: dict[str, str]) -> None:
        """Checks strides, and sizes once all are known."""
        shape, strides = list(tensor.shape), tensor.stride()
        expected = [sizes[size] if size in sizes else evaluate(size, sizes) for size in self.sizes]
        if shape != expected:
            known = ", ".join(
                f"{name} = {sizes[name]}" + (f" (as {origins[name]} has)" if name in origins else "")
                for name in names_in(f"({self.shape})")
                if origins.get(name) != self.title
            )
            raise ValueError(
                f"{self.title}: got shape {shape}, expected [{self.shape}] = {expected}"
                + (f" with {known}" if known else "")
            )
        if max(shape, default=0) >= 2**31:
            raise ValueError(f"{self.title}: got shape {shape}, expected sizes below 2**31")
        inner = 0 if self.packed is None else len(shape) - self.packed
        if 0 not in shape and not contiguous(shape[inner:], strides[inner:]):
            words = {None: "a contiguous tensor", 1: "contiguous channels (last stride 1)"}
            wanted = words.get(self.packed, f"the last {self.packed} dimensions to be contiguous")
            raise ValueError(f"{self.title}: got strides {strides}, expected {wanted}")


def require_dense(name: str, tensor: Any, *, fake: bool = False) -> None:
    """Requires a plain tensor with its own memory on the CPU or a GPU. fake: a tracer's tensor passes too."""
    if not isinstance(tensor, Tensor):
        got = "None" if tensor is None else type(tensor).__name__
        raise TypeError(f"{name}: got {got}, expected a torch.Tensor")
    if fake and isinstance(tensor, FakeTensor):
        device = tensor.device
    elif type(tensor) not in _CLASSES:
        raise TypeError(
            f"{name}: got {type(tensor).__name__}, a subclass of torch.Tensor, expected a plain one; pass "
            f"{name}.as_subclass(torch.Tensor) where its data are those of a plain tensor"
        )
    elif tensor.is_nested or tensor.layout is not torch.strided or tensor.is_quantized:
        found = "nested" if tensor.is_nested else "quantized" if tensor.is_quantized else tensor.layout
        raise TypeError(f"{name}: got a tensor that is {found}, expected a dense one (torch.strided)")
    elif torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        raise TypeError(
            f"{name}: got a tensor inside a transform of torch.func, expected a plain one: the kernels have "
            "no gradient and no batching rule"
        )
    else:
        device = tensor.device
        if tensor.is_conj() or tensor.is_neg() or tensor._is_zerotensor():
            raise TypeError(
                f"{name}: got a lazily negated, conjugated or zero tensor, expected a plain one; pass "
                f"{name} + 0 where it is read, and a tensor made with torch.empty where it is written to"
            )
    if device.type not in ("cpu", "cuda"):
        raise ValueError(
            f"{name}: got a tensor on {device}, expected cpu or cuda (no kernel for that device)"
        )


def empty(
    name: str,
    shape: Sequence[int],
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    *,
    pinned: bool = False,
) -> Tensor:
    """Allocates uninitialised memory for a kernel to write, whatever torch's default device is.

    Raises:
        MemoryError: the system does not grant it.
        TypeError: called under a mode that makes tensors without memory, as a tracer does.
    """
    try:
        made = torch.empty(shape, dtype=dtype, device=device, pin_memory=pinned)
    except RuntimeError as cause:
        count = math.prod(shape) * dtype.itemsize
        raise MemoryError(f"{name}: the system does not grant {count} bytes; plan for less") from cause
    if type(made) is not Tensor:
        raise TypeError(
            f"{name}: got {type(made).__name__} for new memory, expected a plain tensor; leave the mode (of "
            "torch.utils._python_dispatch) that makes such tensors, this is not traced"
        )
    return made


_CLASSES = (Tensor, torch.nn.Parameter)


def evaluate(expression: str, values: dict[str, Any]) -> Any:
    """Evaluates an expression of a description. Input from outside never gets here."""
    return eval(_compiled(expression), {"__builtins__": {}}, values)


def names_in(expression: str) -> tuple[str, ...]:
    return _compiled(expression).co_names


@lru_cache
def _compiled(expression: str) -> CodeType:
    return compile(expression, "<signature>", "eval")
