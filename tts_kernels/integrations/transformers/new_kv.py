"""The return value of `TreeCache.update`, instead of all keys and values so far."""

from __future__ import annotations

from typing import Any, NoReturn

from torch import Tensor

from .errors import WrongCacheError
from .rows import Rows


class NewKV:
    """Keys and values of a step's new tokens in one layer, on their way to the attention function.

    It is no tensor: attn_implementation="tts" unpacks it, and any other use raises. So no other attention can
    mistake the new tokens for all of them.
    """

    __slots__ = ("keys", "layer", "rows", "values")

    def __init__(self, rows: Rows, layer: int, keys: Tensor, values: Tensor) -> None:
        """keys, values: [B, num_kv_heads, S, head_dim]"""
        self.rows, self.layer = rows, layer
        self.keys, self.values = keys, values

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):  # Python and torch.compile look for these in any object
            raise AttributeError(name)
        _refuse()

    def __getitem__(self, index: Any) -> NoReturn:
        _refuse()

    def __iter__(self) -> NoReturn:
        _refuse()

    @classmethod
    def __torch_function__(cls, *_: Any, **__: Any) -> NoReturn:
        _refuse()


def _refuse() -> NoReturn:
    raise WrongCacheError(
        'cache: got a TreeCache, which only attn_implementation="tts" can read, but the model uses another '
        "one or attention code of its own; call tts_kernels.integrations.transformers.register() and "
        'model.set_attn_implementation("tts"), or leave TreeCache out'
    )
