"""Tells a `TreeCache` the ids of the tokens in forwards of transformers' models."""

from __future__ import annotations

import functools
from typing import Any

import torch
from transformers import PreTrainedModel

from .given_caches import given_tree_cache
from .origins import forward_of


@functools.cache
def watch_forwards() -> None:
    """Makes calls of all models inform the TreeCache passed to them; without one they are unchanged.

    The attention sees keys and values only. If one model calls another, the inner call counts: it may get
    embeddings that do not belong to the outer call's ids.
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
