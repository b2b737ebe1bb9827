"""Notices that a model's weights changed, so that nothing computed with the old ones meets the new."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from operator import attrgetter, is_
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook

from .hooks import changing_hooks

_SMALL = 4096  # numbers in a tensor whose values are kept, to be compared with


class Weights:
    """The modules, parameters and buffers of one model, watched for those who keep what they gave.

    `check` sees tensors that were written in place, by their version counters; other tensors, memory or
    modules in the place of those before; modules that got another class, a forward of their own or hooks, or
    lost them; and steps of torch's optimizers, of which the fused ones move no counter. Small tensors are
    compared by their values then, as some may be written anew in each forward. Frequencies of rotary
    positions that a forward sets by the length of its text are left out. It does not see writes through
    `.data`, through another library's view of the memory, or into inference tensors: those `changed` tells.
    No tensor or module is kept alive for it.

    Attributes:
        epoch: moves on with every change that was noticed.
        placing: moves on where a module, a tensor or its memory may be another one than before.
        lock: held by the thread that has put something else into the model for a forward: an attention
            implementation, hooks, weights.
    """

    def __init__(self, model: nn.Module) -> None:
        self.epoch = 0
        self.placing = 0
        self.lock = threading.RLock()
        self._model = ref(model)
        self._note(*_parts(model))

    def check(self) -> int:
        """The epoch, a new one where something changed since the last call."""
        with self.lock:
            return self._checked()

    def _checked(self) -> int:
        model = self._model()
        assert model is not None  # whoever asks holds it
        modules, tensors = _parts(model)
        if not self._placed_alike(modules, tensors):
            self.placing += 1
        elif (versions := self._count(tensors)) == self._versions:
            return self.epoch
        elif all(map(_alike, tensors, versions, self._versions, self._values)):
            self._versions[:] = versions
            return self.epoch
        self._note(modules, tensors)
        self.epoch += 1
        return self.epoch

    def changed(self) -> None:
        """What `check` cannot see changed."""
        self.epoch += 1
        self.placing += 1

    def _note(self, modules: list[nn.Module], tensors: list[Tensor]) -> None:
        self._modules = list(map(ref, modules))
        self._tensors = list(map(ref, tensors))
        self._code = _code(modules)
        # An address alone may be that of memory that was freed and taken again.
        self._memory = list(map(ref, map(_STORAGE, tensors)))
        self._addresses = list(map(_ADDRESS, tensors))
        self._all_count = not any(tensor.is_inference() for tensor in tensors)
        self._versions: list[int] = self._count(tensors)
        self._values: list[Tensor | None] = [
            tensor.detach().clone() if tensor.numel() <= _SMALL else None for tensor in tensors
        ]

    def _placed_alike(self, modules: list[nn.Module], tensors: list[Tensor]) -> bool:
        return (
            _same(modules, self._modules)
            and _code(modules) == self._code
            and _same(tensors, self._tensors)
            and _same(list(map(_STORAGE, tensors)), self._memory)
            and list(map(_ADDRESS, tensors)) == self._addresses
        )

    def _count(self, tensors: list[Tensor]) -> list[int]:
        """The version of each; inference tensors have none."""
        if self._all_count:
            return list(map(_VERSION, tensors))
        return [0 if tensor.is_inference() else tensor._version for tensor in tensors]


_watched: WeakKeyDictionary[nn.Module, Weights] = WeakKeyDictionary()
_watching = threading.Lock()


def weights_of(model: nn.Module) -> Weights:
    """One for all who ask for the same model."""
    with _watching:
        if model not in _watched:
            _watched[model] = Weights(model)
        return _watched[model]


# `check` looks at hundreds of modules and tensors before each step, so without a call in Python for each.
_VERSION, _STORAGE, _ADDRESS = attrgetter("_version"), Tensor.untyped_storage, Tensor.data_ptr


def _parts(model: nn.Module) -> tuple[list[nn.Module], list[Tensor]]:
    """All modules, parameters and buffers, in a third of the time that `Module.parameters` takes."""
    modules, tensors = list[Any]([model]), list[Any]()
    for module in modules:  # which grows meanwhile
        if module is None:
            continue
        if table := module._parameters:  # most of these are empty
            tensors += table.values()
        if table := module._buffers:
            tensors += _constant_buffers(module, table) if "rope_type" in vars(module) else table.values()
        if table := module._modules:
            modules += table.values()
    return [m for m in modules if m is not None], [t for t in tensors if t is not None]


def _constant_buffers(module: nn.Module, table: Mapping[str, Any]) -> Iterable[Any]:
    """Without frequencies that rotary modules of types longrope and dynamic set before they use them."""
    kinds = vars(module)["rope_type"]
    if not {"longrope", "dynamic"}.intersection(kinds.values() if isinstance(kinds, Mapping) else [kinds]):
        return table.values()
    return [t for name, t in table.items() if not name.endswith("inv_freq") or "original" in name]


def _code(modules: list[nn.Module]) -> list[object]:
    """What runs in each module: its class, and of those that have them the ids of a forward and of hooks."""
    code: list[object] = list(map(type, modules))
    for module in modules:
        own = vars(module)
        if own["_forward_hooks"] or own["_forward_pre_hooks"] or "forward" in own:
            hooks = changing_hooks(module)
            if hooks or "forward" in own:
                code.append((*hooks, id(own.get("forward"))))
    return code


def _same(now: Sequence[Any], known: Iterable[ref[Any]]) -> bool:
    before = [reference() for reference in known]
    return len(now) == len(before) and all(map(is_, now, before))


def _alike(tensor: Tensor, now: int, before: int, value: Tensor | None) -> bool:
    return now == before or (value is not None and torch.equal(tensor, value))


def _after_step(optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:
    stepped = {
        id(weight)
        for group in optimizer.param_groups
        for weight in group["params"]
        if weight.grad is not None
    }
    for model, weights in list(_watched.items()):
        if not stepped.isdisjoint(map(id, model.parameters())):
            weights.epoch += 1


register_optimizer_step_post_hook(_after_step)
