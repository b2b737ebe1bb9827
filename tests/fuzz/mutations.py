"""Changes of arguments: of a value alone, or of one inside a plan, a weight or a selection."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from tts_kernels.checks import check_storage, require_dense

JUNK: list[Callable[[], Any]] = [
    lambda: None,
    lambda: "a",
    lambda: [1, 2],
    lambda: {},
    lambda: object(),
    lambda: 1.5,
    lambda: True,
    lambda: 2**70,
    lambda: b"x",
    lambda: np.zeros(3, dtype=np.int32),
    lambda: torch.float64,
    lambda: torch.zeros(()),
]
INTS: list[Any] = [
    0,
    -1,
    1,
    2,
    3,
    7,
    15,
    17,
    2**31 - 1,
    2**31,
    2**63 - 1,
    2**70,
    -(2**70),
    True,
    1.5,
    "1",
    None,
]
INTS += [float("nan"), np.int64(2), np.int32(1), np.uint8(3), np.float32(2.0), 300.00]
FLOATS: list[Any] = [
    0.0,
    -0.0,
    -1.0,
    0.5,
    1.0,
    2,
    1e-300,
    300.00,
    1e-45,
    float("nan"),
    float("inf"),
    -float("inf"),
]
FLOATS += [True, "a", None, 10**400, np.float32(0.5), np.float64(0.25), 1j]
NAMES: list[Any] = [
    "",
    "branch",
    "tree",
    "siblings",
    "all",
    "mean",
    "minmax",
    "HND",
    "packed",
    None,
    1,
    "é" * 9,
    b"tree",
]
DTYPES = [torch.float64, torch.float16, torch.bfloat16, torch.float32, torch.int8, torch.int32, torch.int64]
DTYPES += [torch.bool, torch.uint8, torch.complex64, torch.float8_e4m3fn]


class Subclass(Tensor):
    pass


def mutated(value: Any, rng: random.Random, others: list[Tensor]) -> Any:
    """`value`, changed in one way. others: tensors of the same call."""
    if rng.random() < 0.05:
        return rng.choice(JUNK)()
    if isinstance(value, Tensor):
        return _tensor(value, rng, others)
    if isinstance(value, bool):
        return rng.choice([not value, 1, 0, None, "yes", 2**70])
    if isinstance(value, int):
        return rng.choice([*INTS, value + 1, value - 1, 2 * value])
    if isinstance(value, float):
        return rng.choice([*FLOATS, -value, 2 * value])
    if isinstance(value, str):
        return rng.choice(NAMES)
    if isinstance(value, torch.dtype):
        return rng.choice([*DTYPES, None, "float32", 1])
    if is_dataclass(value) and not isinstance(value, type):
        return _field(value, rng, others)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        name = rng.choice(value._fields)
        return value._replace(**{name: mutated(getattr(value, name), rng, others)})
    if isinstance(value, (list, tuple)) and value:
        items = list(value)
        at = rng.randrange(len(items))
        items[at] = mutated(items[at], rng, others)
        return rng.choice([items, tuple(items), items[:at], items * 2])
    if value is None and others and rng.random() < 0.7:
        return rng.choice([*others, *[junk() for junk in JUNK]])
    return rng.choice(JUNK)()


def _field(value: Any, rng: random.Random, others: list[Tensor]) -> Any:
    from dataclasses import replace

    name = rng.choice([field.name for field in fields(value)])
    return replace(value, **{name: mutated(getattr(value, name), rng, others)})


def _tensor(tensor: Tensor, rng: random.Random, others: list[Tensor]) -> Any:
    others = [other for other in others if _whole(other)]
    change = rng.choice(_CHANGES)
    if not (_whole(tensor) and others):
        return tensor
    try:
        return change(tensor, rng, others)
    except (RuntimeError, NotImplementedError, IndexError, ValueError, TypeError):
        return tensor  # torch has no such variant of this one


def _whole(tensor: Tensor) -> bool:
    """Whether it is still a plain one: torch itself crashes on a storage that was resized."""
    try:
        require_dense("tensor", tensor)
        check_storage("tensor", tensor)
        return True
    except (TypeError, ValueError):
        return False


def _with_values(tensor: Tensor, rng: random.Random, _: list[Tensor]) -> Tensor:
    changed = tensor.detach().clone()
    if changed.numel():
        at = rng.randrange(changed.numel())
        values = (
            [0, -1, 1, 5, 2**31 - 1, -(2**31)]
            if not changed.is_floating_point()
            else [float("nan"), float("inf"), -0.0, -1.0, 300.0, 0.0]
        )
        changed.view(-1)[at] = rng.choice(values)
    return changed


def _resized_storage(tensor: Tensor, rng: random.Random, _: list[Tensor]) -> Tensor:
    changed = tensor.detach().clone()
    storage = changed.untyped_storage()
    storage.resize_(rng.choice([0, 1, storage.nbytes() // 2]))
    return changed


def _alias(tensor: Tensor, rng: random.Random, others: list[Tensor]) -> Tensor:
    other = rng.choice(others)
    return rng.choice([other, other.flatten()[: tensor.numel()].view(tensor.shape), other.view_as(other)])


def _spread(tensor: Tensor, *_: Any) -> Tensor:
    wide = tensor.new_zeros((*tensor.shape[:-1], 2 * tensor.shape[-1]))
    wide[..., ::2] = tensor
    return wide[..., ::2]


def _expanded(tensor: Tensor, rng: random.Random, _: list[Tensor]) -> Tensor:
    at = rng.randrange(tensor.dim())
    return tensor.narrow(at, 0, 1).expand(tensor.shape)


def _negated(tensor: Tensor, *_: Any) -> Tensor:
    return torch._neg_view(tensor.detach().clone())


def _fake(tensor: Tensor, *_: Any) -> Tensor:
    with FakeTensorMode() as mode:
        return mode.from_tensor(tensor)


_CHANGES: list[Callable[[Tensor, random.Random, list[Tensor]], Any]] = [
    _with_values,
    _with_values,
    _with_values,
    _resized_storage,
    _resized_storage,
    _alias,
    _alias,
    _spread,
    _expanded,
    _negated,
    _fake,
    lambda t, rng, _: t.to(rng.choice(DTYPES)),
    lambda t, rng, _: t.to("meta"),
    lambda t, rng, _: t.to_sparse(),
    lambda t, rng, _: t.to_sparse_csr(),
    lambda t, rng, _: torch.nested.nested_tensor(list(t)),
    lambda t, rng, _: t.to_mkldnn(),
    lambda t, rng, _: torch.quantize_per_tensor(t.float(), 0.1, 0, torch.qint8),
    lambda t, rng, _: t.as_subclass(Subclass),
    lambda t, rng, _: torch.nn.Parameter(t, requires_grad=rng.random() < 0.5),
    lambda t, rng, _: t.detach().clone().requires_grad_(),
    lambda t, rng, _: t[0],
    lambda t, rng, _: t[None],
    lambda t, rng, _: t[:-1],
    lambda t, rng, _: t[..., :-1],
    lambda t, rng, _: t[1:],
    lambda t, rng, _: t[:0],
    lambda t, rng, _: t[..., :0],
    lambda t, rng, _: torch.cat([t, t]),
    lambda t, rng, _: t.mT,
    lambda t, rng, _: t.mT.contiguous().mT,
    lambda t, rng, _: t.flatten(),
    lambda t, rng, _: t.sum(),
    lambda t, rng, _: t.numpy(),
    lambda t, rng, _: t.tolist(),
    lambda t, rng, _: torch._efficientzerotensor(t.shape, dtype=t.dtype),
    lambda t, rng, _: t.clone(),
]
