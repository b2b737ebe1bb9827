"""Which masks a model requests from transformers, checked at all lengths that it allows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from .features import AttentionCall, refusal

# Indices of sequence, head, query and key, broadcast -> bool, whether the query sees the key
MaskFunction = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
# The stand-in for a requested mask, and the mask's function
Asked = tuple[Tensor, MaskFunction]

_asked: ContextVar[list[Asked] | None] = ContextVar("asked masks", default=None)


@contextmanager
def recorded_masks() -> Iterator[list[Asked]]:
    """Collects the masks that models request inside; they get stand-ins."""
    asked: list[Asked] = []
    token = _asked.set(asked)
    try:
        yield asked
    finally:
        _asked.reset(token)


def asked_mask(
    *, q_length: int, kv_length: int, mask_function: MaskFunction, device: Any = None, **_: Any
) -> Tensor | None:
    """Mask function for transformers' AttentionMaskInterface. Returns None outside `recorded_masks`."""
    asked = _asked.get()
    if asked is None:
        return None
    asked.append((torch.zeros((1, 1, q_length, kv_length), device=device), mask_function))
    return asked[-1][0]


def is_view_of(mask: Tensor, other: Tensor) -> bool:
    """Whether a mask is another one or a part of it, not a copy."""
    return mask.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()


def refuse_masks(
    model: Any,
    asked: Sequence[Asked],
    masks: Sequence[Tensor | None],
    calls: Sequence[AttentionCall],
    max_positions: int | None,
) -> None:
    """Raises UnsupportedModelError unless each layer's mask is causal, possibly within its window or chunk.

    asked: of `recorded_masks`. masks: what reached each layer's attention, None: no mask. calls: what each
    layer passed to the attention function. max_positions: limit up to which masks are checked.
    """
    for layer, (mask, call) in enumerate(zip(masks, calls, strict=True)):
        if mask is None:
            continue
        functions = [function for made, function in asked if is_view_of(mask, made)]
        if not functions:
            raise refusal(model, "an attention mask of its own")
        if not _is_served(functions[0], call, max_positions or 1 << 20):
            seen = "all before it" if call.window is None else f"the last {call.window}"
            seen = seen if call.chunk is None else f"{seen} in chunks of {call.chunk}"
            raise refusal(
                model,
                f"an attention mask in layer {layer} by which a token does not see {seen} (chunks or blocks, "
                "for example)",
            )


def _is_served(function: MaskFunction, call: AttentionCall, max_positions: int) -> bool:
    """Whether a query at any position sees keys at all distances as the kernels do."""
    window, chunk = call.window or max_positions, call.chunk or max_positions
    edges = {1 << power for power in range(max_positions.bit_length())} | {max_positions - 1}
    edges |= {call.window or 0, chunk, 2 * chunk, max_positions // chunk * chunk}
    near = torch.tensor(sorted({max(0, edge + d) for edge in edges for d in (-1, 0, 1)}))
    query = near[near < max_positions][:, None]
    begin = query - query % chunk
    key = torch.cat([query - near, query + near, begin - 1, begin], 1)
    exists = (key >= 0) & (key < max_positions)
    expected = (key <= query) & (query - key < window) & (key >= begin)
    zero = torch.zeros((1, 1, 1, 1), dtype=torch.long)
    try:
        sees = function(zero, zero, query[None, None], key.clamp(0, max_positions - 1)[None, None])
    except (IndexError, RuntimeError):  # it looks up the tokens of this text
        return False
    return bool((sees == expected)[..., exists].all())
