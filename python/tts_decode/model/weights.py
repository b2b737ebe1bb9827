"""Detects changes of a model's weights, so that results of the old ones are never mixed with the new."""

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

_SMALL = 4096  # numbers in a tensor whose values are kept for comparison


class Weights:
    """The modules, parameters and buffers of one model, watched for holders of their results.

    `check` detects tensors that were written in place, by their version counters; replaced tensors, memory or
    modules; modules whose class, own forward or hooks changed; and steps of torch's optimizers, because the
    fused ones move no counter. Small tensors are then compared by value, because some may be rewritten in
    each forward. Frequencies of rotary positions that a forward sets by the length of its text are left out.
    It does not detect writes through `.data`, through another library's view of the memory, or into inference
    tensors: report those with `changed`. It keeps no tensor or module alive.

    Attributes:
        epoch: increases with every detected change.
        placing: increases when a module, a tensor or its memory may have been replaced.
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
        """Returns the epoch, a new one if something changed since the last call."""
        with self.lock:
            return self._checked()

    def _checked(self) -> int:
        model = self._model()
        assert model is not None  # the caller holds it
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
        """Reports a change that `check` cannot see."""
        self.epoch += 1
        self.placing += 1

    def _note(self, modules: list[nn.Module], tensors: list[Tensor]) -> None:
        self._modules = list(map(ref, modules))
        self._tensors = list(map(ref, tensors))
        self._code = _code(modules)
        # An address alone is not enough: memory may have been freed and allocated again.
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
        """Returns the version of each; inference tensors have none."""
        if self._all_count:
            return list(map(_VERSION, tensors))
        return [0 if tensor.is_inference() else tensor._version for tensor in tensors]


_watched: WeakKeyDictionary[nn.Module, Weights] = WeakKeyDictionary()
_watching = threading.Lock()


def weights_of(model: nn.Module) -> Weights:
    """Returns one object for all callers with the same model."""
    with _watching:
        if model not in _watched:
            _watched[model] = Weights(model)
        return _watched[model]


# `check` visits hundreds of modules and tensors before each step, so it makes no Python call for each.
_VERSION, _STORAGE, _ADDRESS = attrgetter("_version"), Tensor.untyped_storage, Tensor.data_ptr


def _parts(model: nn.Module) -> tuple[list[nn.Module], list[Tensor]]:
    """Returns all modules, parameters and buffers, in a third of the time of `Module.parameters`."""
    modules, tensors = list[Any]([model]), list[Any]()
    for module in modules:  # grows during the loop
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
    """Yields buffers except frequencies that rotary modules of types longrope and dynamic set before use."""
    kinds = vars(module)["rope_type"]
    if not {"longrope", "dynamic"}.intersection(kinds.values() if isinstance(kinds, Mapping) else [kinds]):
        return table.values()
    return [t for name, t in table.items() if not name.endswith("inv_freq") or "original" in name]


def _code(modules: list[nn.Module]) -> list[object]:
    """Returns what runs in each module: its class, and ids of an own forward and of hooks, if any."""
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
