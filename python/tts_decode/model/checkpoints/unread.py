"""Finds tensors of a checkpoint that transformers leaves out although its model has a place for them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import accumulate
from pathlib import Path

from torch import nn

from .tensors import FLOATS, SavedTensors


def left_out(model: nn.Module, names: Iterable[str]) -> Iterator[str]:
    """Yields the tensors without which the model may not be what its checkpoint holds.

    They are other parameters of layers that the model has, such as a bias that the config denies, and parts
    of layers beyond the config's number of layers. All others may be left out: those of towers for images,
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
            yield name


def is_zero_bias(source: Path | str, name: str) -> bool:
    """Whether a tensor of a folder is a bias of zeros, which some converters write for layers without one."""
    if not (isinstance(source, Path) and name.endswith(".bias")):
        return False
    tensors = SavedTensors(source)
    return name in tensors and not tensors.take(name, tensors.shape(name), *FLOATS).any()
