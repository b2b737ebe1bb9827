"""Finds tensors of a checkpoint that transformers leaves out although its model has a place for them."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import accumulate

from torch import nn


def left_out(model: nn.Module, names: Iterable[str]) -> str | None:
    """Returns a tensor without which the model is not what its checkpoint holds, or None.

    That is another parameter of a layer that the model has, such as a bias that the config denies, or a part
    of a layer beyond the config's number of layers. All others may be left out: those of towers for images,
    layers that draft tokens, and buffers that older classes saved.

    names: of the tensors that transformers did not expect.
    """
    modules = dict(model.named_modules())
    for name in sorted(names):
        owner, absent = model, False
        for path in accumulate(name.split(".")[:-1], "{}.{}".format):
            if absent := path not in modules:
                break
            owner = modules[path]
        if isinstance(owner, nn.ModuleList) if absent else any(True for _ in owner.parameters(recurse=False)):
            return name
    return None
