"""Collects hidden states of chosen layers while a forward runs."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn


class LayerStates:
    """Copies the inputs of some layers at some tokens during a forward.

    Args:
        layers: numbers as in transformers: `i` below the number of layers is the input of layer i, so that 0
            is the embeddings; the number of layers is the last hidden states, after the final norm.
        rows: int64 [R], tokens of the forward.
    """

    def __init__(self, layers: Sequence[int], rows: Tensor) -> None:
        self._layers = tuple(layers)
        self._rows = rows
        self._taken: dict[int, Tensor] = {}

    def take(self, layer: int, states: Tensor) -> None:
        """Copies states: float [T, hidden], of all tokens, in memory that may be overwritten later."""
        if layer in self._layers:
            self._taken[layer] = states[self._rows].float()

    def watch(self, hooks: ExitStack, modules: Sequence[nn.Module]) -> None:
        """Copies the inputs of the model's layers until `hooks` close."""
        for layer in self._layers:
            if layer < len(modules):
                hook = modules[layer].register_forward_pre_hook(_taking(self, layer), with_kwargs=True)
                hooks.callback(hook.remove)

    def stacked(self) -> Tensor:
        """Returns float32 [R, layers, hidden]."""
        return torch.stack([self._taken[layer] for layer in self._layers], 1)


def _taking(states: LayerStates, layer: int) -> Any:
    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        states.take(layer, (args[0] if args else kwargs["hidden_states"]).flatten(0, -2))

    return hook
