"""Attention modules whose own code bypasses transformers' AttentionInterface, or passes too little to it.

During a forward each gets the forward of `own_forwards.py`, which calls an attention function instead.
Everything before and after it remains the module's own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple

from torch import nn

from .own_forwards import BIASES, FORWARDS, Attention

_NOTHING = object()


class Own(NamedTuple):
    """What a module has during a forward.

    value: of the attribute `name`; if that is "forward", a function that takes the attention function and the
    module before its arguments.
    """

    module: nn.Module
    name: str
    value: Any


def own_attention(model: nn.Module) -> list[Own]:
    """Returns the replacements for the model's modules of the classes supported here."""
    found = []
    for module in model.modules():
        if forward := _of_class(FORWARDS, module):
            found.append(Own(module, "forward", forward))
        if name := _of_class(BIASES, module):
            found.append(Own(module, name, _no_biases))
    return found


def has_only_distances(module: nn.Module) -> bool:
    """Whether a text decoder knows positions only through ALiBi, which the attention adds by itself."""
    return _of_class(BIASES, module) is not None


@contextmanager
def rerouted(replaced: Sequence[Own], attention: Attention) -> Iterator[None]:
    """Inside, these modules of `own_attention` call `attention`."""
    with ExitStack() as stack:
        for module, name, value in replaced:
            stack.callback(_set_own, module, name, module.__dict__.get(name, _NOTHING))
            _set_own(module, name, partial(value, attention, module) if name == "forward" else value)
        yield


def _of_class(table: dict[str, Any], module: nn.Module) -> Any:
    """Looks up a module by the name of its class or of the nearest base class."""
    names = (cls.__name__ for cls in type(module).__mro__)
    return next(filter(None, map(table.get, names)), None)


def _no_biases(*_: Any, **__: Any) -> None:
    """Replaces a function that makes biases for a number of tokens."""


def _set_own(module: nn.Module, name: str, value: Any) -> None:
    """Sets an attribute of one instance, or unsets it, so that its class's applies again."""
    module.__dict__.pop(name, None)
    if value is not _NOTHING:
        module.__dict__[name] = value
