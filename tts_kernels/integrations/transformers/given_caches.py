"""Caches among the arguments of `generate` and of models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...checks import shown
from .cache import TreeCache
from .errors import UnsupportedError, WrongCacheError
from .versions import cache_argument

_CACHE_NAMES = ("cache", "past_key_values")


def given_tree_cache(args: Sequence[Any], options: Mapping[str, Any]) -> TreeCache | None:
    """Returns the TreeCache passed to a call of the model or of its `generate`, if any.

    Raises:
        UnsupportedError: another cache is passed with it.
        WrongCacheError: a name or a class is passed instead of a cache.
    """
    named = {name: options[name] for name in _CACHE_NAMES if options.get(name) is not None}
    others = (*args, *(value for name, value in options.items() if name not in named))
    caches = [*(value for value in others if isinstance(value, TreeCache)), *named.values()]
    found = next((cache for cache in caches if isinstance(cache, TreeCache)), None)
    if found is not None and any(cache is not found for cache in caches):
        raise UnsupportedError(
            f"past_key_values: got a {type(caches[1]).__name__} beside another cache, a "
            f"{type(caches[0]).__name__}, expected one of both arguments; pass the TreeCache alone"
        )
    for name, cache in named.items():
        if isinstance(cache, (str, type)):  # transformers itself cannot use it
            raise WrongCacheError(
                f"{name}: got {shown(cache)}, expected a TreeCache; pass "
                f"{cache_argument()}=TreeCache(model.config)"
            )
    return found
