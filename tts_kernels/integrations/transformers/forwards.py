"""Forwards of transformers' models with a `TreeCache`: it is told the ids of the tokens."""

from __future__ import annotations

import functools
from typing import Any

import torch
from transformers import PreTrainedModel

from .given_caches import given_tree_cache
from .origins import forward_of


@functools.cache
def watch_forwards() -> None:
    """Has calls of all models tell the TreeCache that they get; without one they are as they were.

    The attention sees keys and values only. A model that another one calls counts, not the other: it may get
    embeddings that are not those of the other's ids.
    """
    PreTrainedModel.__call__ = _told  # type: ignore[method-assign]


def _told(model: PreTrainedModel, *args: Any, **options: Any) -> Any:
    run = super(PreTrainedModel, model).__call__
    if torch.compiler.is_compiling():  # inside a graph: the call around it has told
        return run(*args, **options)
    if given_tree_cache(args, options) is None:
        return run(*args, **options)
    with forward_of(options.get("input_ids", args[0] if args else None)):
        return run(*args, **options)
