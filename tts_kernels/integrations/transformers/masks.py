"""Replaces an attention mask: the tree knows who sees whom, except for padding and windows."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers.masking_utils import causal_mask_function

from .eager import eager
from .errors import UnsupportedError, WrongCacheError

# Indices of row, head, query and key, broadcast -> bool, whether the query sees the key
MaskFunction = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
_CAUSAL: Any = causal_mask_function
_ENTRIES = 1 << 22  # entries of a mask that are checked, in a few milliseconds
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class StepMask:
    """Causal attention, within a window if there is one, of rows padded on the left.

    padding: bool [B, columns], False where a row has no token; None: nowhere.
    window: a query at position p sees max(0, p - window + 1) .. p.
    """

    padding: Tensor | None
    window: int | None

    @property
    def ndim(self) -> NoReturn:
        """transformers reads this if it made this mask before the forward, for a static cache."""
        raise WrongCacheError(
            'cache: got a static cache with attn_implementation="tts", expected a TreeCache; leave '
            "cache_implementation out and pass cache=TreeCache(model.config) to generate"
        )

    def tokens(self, batch: int, past: int, new: int) -> BoolArray | None:
        """Returns [B, past + new], which columns hold tokens; None: all. Waits for the device if padded."""
        if self.padding is None:
            return None
        got = list(self.padding.shape)
        if len(got) != 2 or got[0] != batch or got[1] < past + new:
            raise UnsupportedError(
                f"attention_mask: got {got}, expected [{batch}, {past + new}]: a column for each token that "
                "the cache holds, padding included, and for each new one"
            )
        tokens: BoolArray = self.padding[:, : past + new].cpu().numpy()
        return tokens


@eager
def tree_mask(
    *,
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    mask_function: MaskFunction,
    attention_mask: Tensor | None = None,
    local_size: int | None = None,
    allow_is_causal_skip: bool = True,
    use_vmap: bool = False,
    **_: Any,
) -> StepMask:
    """Mask function of transformers' AttentionMaskInterface.

    Raises UnsupportedError for a mask that is neither causal nor causal within a window.
    """
    if use_vmap or not allow_is_causal_skip:
        raise UnsupportedError(
            "attention_mask: the model adds a mask of its own to the causal one (blocks or images, for "
            'example), which attn_implementation="tts" does not serve; use "sdpa" without TreeCache'
        )
    if local_size is not None or mask_function is not _CAUSAL:
        _check_mask_function(
            mask_function, batch_size, int(q_offset), q_length, kv_offset + kv_length, local_size
        )
    return StepMask(attention_mask, local_size)


def _check_mask_function(
    function: MaskFunction, batch: int, past: int, new: int, columns: int, window: int | None
) -> None:
    """Checks some of the new queries, in all rows and over all keys."""
    queries = _queries_to_check(new, max(2, _ENTRIES // (batch * columns)))
    query = past + torch.tensor(queries)[None, None, :, None]
    key = torch.arange(columns)[None, None, None]
    row = torch.arange(batch)[:, None, None, None]
    head = torch.zeros((1, 1, 1, 1), dtype=torch.long)  # masks of transformers apply to all heads
    expected = (key <= query) & (query - key < (columns if window is None else window))
    try:
        sees = function(row, head, query, key)
    except (IndexError, RuntimeError):  # it looks up data of this batch, perhaps on another device
        sees = ~expected
    if bool((sees != expected).any()):
        seen = "all before it" if window is None else f"the last {window}"
        raise UnsupportedError(
            f"attention_mask: the model asks for a mask by which a token does not see {seen} (chunked or "
            'bidirectional attention, for example), which attn_implementation="tts" does not serve; use '
            '"sdpa" without TreeCache'
        )


def _queries_to_check(new: int, most: int) -> list[int]:
    """Returns all queries if at most `most`, else the first, the last and some between them.

    They are the same at each call, and drawn by another generator than tokens.
    """
    if new <= most:
        return list(range(new))
    return [0, *random.Random(0).sample(range(1, new - 1), most - 2), new - 1]
