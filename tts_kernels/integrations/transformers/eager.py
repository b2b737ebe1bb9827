"""Excludes functions from torch.compile's graphs: the tree of the rows changes with each forward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

Function = TypeVar("Function", bound=Callable[..., Any])


def eager(function: Function) -> Function:
    """Returns the function, called between compiled graphs. With fullgraph=True torch raises this reason."""
    reason = "TreeCache keeps its tree outside of compiled graphs; compile without fullgraph=True"
    disable: Any = torch.compiler.disable  # which has no types
    left_out: Function = disable(function, reason=reason)
    return left_out
