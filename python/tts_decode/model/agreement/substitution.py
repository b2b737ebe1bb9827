"""Changes a model while the self-check runs: its weights, the forward of its layers, its routing.

Weights are substituted in their modules, not overwritten: the original tensors come back, with the same
memory and version.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..packed_modules import Packed, PackedLinear
from ..quantised_experts import QuantisedExperts
from ..quantised_modules import QuantisedEmbedding, QuantisedLinear

_HALF = (torch.bfloat16, torch.float16)
_ROUNDING = (QuantisedLinear, QuantisedExperts)  # modules that round activations to int8
_NOISE = 0.2  # standard deviation of the noise on constant vectors, compared with a norm's 1


@dataclass(frozen=True)
class _Substitute:
    """A tensor of a module, and its replacement: float32, with noise if it is constant."""

    tensors: dict[str, Any]  # the module's parameters or buffers
    name: str
    tensor: Tensor
    seed: int | None
    dtype: torch.dtype
    inputs: int  # of an output

    def made(self) -> Tensor:
        made: Tensor = self.tensor.detach().to(self.dtype)
        if self.seed is None:
            return made
        generator = torch.Generator().manual_seed(self.seed)
        noise = torch.randn(made.shape, generator=generator).to(made)
        size = self.inputs**-0.5 if made.dim() > 1 else _NOISE * max(1.0, float(made.abs().max()))
        return made.add(noise, alpha=size)


class Weights:
    """A model's weights in float32, with noise on constant ones: one layer at a time, or all but the layers.

    A weight that is all 0 or all 1, as norms, biases and gates are initialised, can hide that it is not
    applied or is applied in the wrong place; so noise is added to it. All others are unchanged. Packed
    weights are multiplied exactly, by torch in the model's modules; so are quantised ones, in some layers.

    Args:
        layers: modules that `layer` substitutes one by one.
        head: output embeddings, or None; they keep their dtype, and their inputs are cast to it.
        exact: False keeps all dtypes, for quantised weights in classes of other packages.
        dequantised: layers whose quantised weights are multiplied exactly.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[nn.Module],
        head: nn.Module | None,
        *,
        exact: bool,
        dequantised: Container[int] = (),
    ) -> None:
        inner = {id(module) for layer in layers for module in layer.modules()}
        outer = [module for module in model.modules() if id(module) not in inner]
        self._tables = [module for module in outer if isinstance(module, nn.Embedding | QuantisedEmbedding)]
        self._head = head
        kept = {id(module) for module in [*self._tables, head]}
        self._layers = layers
        self._changed: set[int] = set()
        self._exactly = [
            [
                module
                for module in layer.modules()
                if isinstance(module, Packed) or (index in dequantised and isinstance(module, _ROUNDING))
            ]
            for index, layer in enumerate(layers)
        ]
        rest = (module for module in outer if id(module) not in kept)
        self._rest = list(_substitutes(rest, exact, len(layers)))
        self._rest += _substitutes([*self._tables, *([head] if head else [])], False, len(layers) + 1)
        self._exact = exact

    def changes(self, layer: int) -> bool:
        """Whether any weight has a substitute. Valid inside `layer`."""
        return layer in self._changed or any(map(_is_rounded, self._exactly[layer]))

    def are_quantised(self, layer: int) -> bool:
        """Whether a layer has quantised weights that are multiplied exactly."""
        return any(isinstance(module, _ROUNDING) for module in self._exactly[layer])

    @contextmanager
    def layer(self, index: int) -> Iterator[None]:
        with ExitStack() as stack:
            changed = list(_substitutes(self._layers[index].modules(), self._exact, index))
            if changed:
                self._changed.add(index)
            stack.enter_context(_substituted(changed))
            stack.enter_context(_multiplied(self._exactly[index], exactly=True))
            yield

    def as_served(self, layer: int) -> AbstractContextManager[None]:
        """Multiplies a layer's quantised weights as when serving. Valid inside `layer`."""
        return _multiplied([m for m in self._exactly[layer] if isinstance(m, _ROUNDING)], exactly=False)

    @contextmanager
    def rest(self) -> Iterator[None]:
        """Substitutes all modules outside the layers. Embeddings and head run in their dtype, with casts."""
        with ExitStack() as stack:
            stack.enter_context(_substituted(self._rest))
            if isinstance(self._head, PackedLinear):
                by_torch = self._head.by_torch
                stack.enter_context(replaced_forwards([self._head], lambda _i, _f: by_torch))
            if self._exact:
                for table in self._tables:
                    stack.callback(table.register_forward_hook(lambda _m, _a, out: out.float()).remove)
                if self._head is not None and not isinstance(self._head, QuantisedLinear):
                    stack.callback(self._head.register_forward_pre_hook(_cast_inputs).remove)
                    stack.callback(self._head.register_forward_hook(lambda _m, _a, out: out.float()).remove)
            yield


@contextmanager
def _multiplied(modules: Sequence[Any], *, exactly: bool) -> Iterator[None]:
    try:
        for module in modules:
            module.exact = exactly
        yield
    finally:
        for module in modules:
            module.exact = not exactly


def _is_rounded(module: Any) -> bool:
    """Whether the packed path serves products that differ from the compared ones."""
    return isinstance(module, _ROUNDING) or any(
        module.panels(name).dtype != torch.float32 for name in module.parts
    )


def _cast_inputs(head: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    dtype = head.panels("weight").dtype if isinstance(head, Packed) else head.weight.dtype
    return tuple(tensor.to(dtype) for tensor in inputs)


def _substitutes(modules: Iterable[nn.Module], exact: bool, seed: int) -> Iterator[_Substitute]:
    """Yields the substitutes. exact: convert 16-bit tensors to float32."""
    for module in modules:
        parts: tuple[Any, ...] = (module._parameters, module._buffers)
        for tensors in parts:
            for name, tensor in tensors.items():
                if tensor is None or not tensor.is_floating_point() or tensor.dtype.itemsize < 2:
                    continue
                panels = isinstance(module, Packed) and tensors is module._buffers
                dtype = torch.float32 if exact and tensor.dtype in _HALF and not panels else tensor.dtype
                constant = (panels or tensors is module._parameters) and _is_constant(tensor)
                if dtype != tensor.dtype or constant:
                    seed += 1_000
                    inputs = _inputs(module, name, tensor)
                    yield _Substitute(tensors, name, tensor, seed if constant else None, dtype, inputs)


def _inputs(module: nn.Module, name: str, tensor: Tensor) -> int:
    """Returns the number of inputs per output of a weight, or of panels."""
    if isinstance(module, Packed) and name not in module._parameters:
        return module.packed(name.removesuffix("_panels")).inputs
    return tensor.shape[-1] if tensor.dim() else 1


def _is_constant(weight: Tensor) -> bool:
    flat = weight.detach().reshape(-1)
    if len(flat) < 2:
        return len(flat) == 1 and float(flat[0]) in (0.0, 1.0)
    return bool((flat[:64] == flat[0]).all()) and bool((flat == flat[0]).all())


@contextmanager
def _substituted(substitutes: Sequence[_Substitute]) -> Iterator[None]:
    try:
        for substitute in substitutes:
            substitute.tensors[substitute.name] = substitute.made()
        yield
    finally:
        for substitute in substitutes:
            substitute.tensors[substitute.name] = substitute.tensor


@contextmanager
def replaced_forwards(
    modules: Sequence[nn.Module], make: Callable[[int, Callable[..., Any]], Callable[..., Any]]
) -> Iterator[None]:
    """Calls `make(index, forward)` for each module and runs the result instead of its forward."""
    before = [module.__dict__.get("forward") for module in modules]
    try:
        for index, module in enumerate(modules):
            module.forward = make(index, module.forward)
        yield
    finally:
        for module, forward in zip(modules, before, strict=True):
            module.__dict__.pop("forward", None)
            if forward is not None:
                module.forward = forward


# The entries that `torch.topk` chose in a layer, call by call: int64 [N, k], N tokens
Routing = list[Tensor]


def joined(one: Routing, other: Routing) -> Routing:
    """Joins the routing of two forwards' tokens."""
    return [torch.cat(pair) for pair in zip(one, other, strict=True)]


class RecordTopk(TorchFunctionMode):
    """Records the choices of each top-k along the last dimension in a `Routing`."""

    def __init__(self, routing: Routing) -> None:
        super().__init__()
        self._routing = routing

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in _TOPK:
            self._routing.append(result.indices.flatten(0, -2))
        return result


class ReplayTopk(TorchFunctionMode):
    """Makes each top-k return the choices of a `Routing`, so that near ties of experts are decided alike."""

    def __init__(self, routing: Routing) -> None:
        super().__init__()
        self._chosen = iter(routing)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _TOPK:
            indices = next(self._chosen, None)
            if indices is not None and args[0].shape[:-1].numel() == len(indices):
                indices = indices.view(*args[0].shape[:-1], indices.shape[-1])
                return torch.return_types.topk((args[0].gather(-1, indices), indices))
        return func(*args, **(kwargs or {}))


@contextmanager
def counted_rows(modules: Sequence[nn.Module], num_tokens: int) -> Iterator[set[int]]:
    """Collects the modules in which `torch.arange` makes as many numbers as there are tokens."""
    counted: set[int] = set()

    def watched(index: int, forward: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            with _CountedRows(num_tokens) as rows:
                result = forward(*args, **kwargs)
            if rows.seen:
                counted.add(index)
            return result

        return run

    with replaced_forwards(modules, watched):
        yield counted


class _CountedRows(TorchFunctionMode):
    """Notes whether `torch.arange` made as many numbers as there are tokens."""

    def __init__(self, num_tokens: int) -> None:
        super().__init__()
        self._num_tokens = num_tokens
        self.seen = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.seen |= func is torch.arange and result.numel() == self._num_tokens
        return result


_TOPK = (torch.topk, torch.Tensor.topk)
