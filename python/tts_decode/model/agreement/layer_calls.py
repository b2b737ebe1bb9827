"""Calls of a model's layers: their arguments and results, whatever the model's class."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..support.features import refusal


@dataclass(frozen=True)
class LayerCall:
    """The arguments of one layer's call."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def hidden(self) -> Tensor:
        """The input hidden states, [..., N, hidden], of all texts, concatenated."""
        states: Tensor = self.args[0] if self.args else self.kwargs["hidden_states"]
        return states.flatten(-3, -2)

    def run(self, forward: Callable[..., Any], states: Tensor) -> Tensor:
        """Calls a layer with other hidden states, [..., N, hidden] of one text; returns its output states."""
        states = states.unsqueeze(-3)
        if self.args:
            return hidden_of(forward(states, *self.args[1:], **self.kwargs))
        return hidden_of(forward(**self.kwargs | {"hidden_states": states}))

    def behind(self, count: int) -> LayerCall:
        """Returns the same call, after `count` tokens, for a layer that counts tokens by its KV cache."""
        caches = self.kwargs.keys() & {"cache", "past_key_values"}  # by the release of transformers
        return LayerCall(self.args, self.kwargs | dict.fromkeys(caches, _Counted(count)))


@dataclass(frozen=True)
class _Counted:
    """Replaces a KV cache of `count` tokens, none of which is attended to."""

    count: int

    def get_seq_length(self, *_: Any) -> int:
        return self.count

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        return keys, values


def hidden_of(result: Any) -> Tensor:
    """Returns the hidden states in a layer's result, [..., N, hidden]."""
    states: Tensor = result if isinstance(result, Tensor) else result[0]
    return states.flatten(-3, -2)


def returned_like(result: Any) -> Callable[[Tensor], Any]:
    """Returns a function that gives hidden states [..., N, hidden] of one text the form of a result."""
    if isinstance(result, Tensor):
        return lambda hidden: hidden.unsqueeze(-3)
    rest = (None,) * (len(result) - 1)
    return lambda hidden: (hidden.unsqueeze(-3), *rest)


def layers_of(model: nn.Module, attention: Sequence[nn.Module]) -> list[nn.Module]:
    """Returns, for each attention module, the largest module of a list that holds no other."""
    names = {id(module): name for name, module in model.named_modules()}
    paths = [names[id(module)].split(".") for module in attention]
    layers = []
    for path in paths:
        for length in range(1, len(path) + 1):
            others = sum(other[:length] == path[:length] for other in paths)
            if others == 1 and isinstance(model.get_submodule(".".join(path[: length - 1])), nn.ModuleList):
                layers.append(model.get_submodule(".".join(path[:length])))
                break
        else:
            raise refusal(model, "layers that are not in a list")
    return layers
