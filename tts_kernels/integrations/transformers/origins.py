"""The origin of new keys and values: model, tokens and positions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from .errors import UnsupportedError

Int32Array = npt.NDArray[np.int32]
Int64Array = npt.NDArray[np.int64]

UNKNOWN = 2**31 - 1  # the largest id that a tree accepts, for tokens with unknown ids

_FORWARD_IDS: ContextVar[Tensor | None] = ContextVar("input_ids", default=None)


@contextmanager
def forward_of(ids: Tensor | None) -> Iterator[None]:
    """Sets `Origin.ids` for a forward inside it; None: embeddings. The innermost counts."""
    token = _FORWARD_IDS.set(ids)
    try:
        yield
    finally:
        _FORWARD_IDS.reset(token)


@dataclass(frozen=True)
class Origin:
    """What S new columns of B rows were computed from.

    module: attention of the first layer. positions: [B or 1, S]; None: unknown.
    """

    module: nn.Module
    positions: Tensor | None

    def ids(self, batch: int, columns: int) -> Int32Array:
        """Returns [B, S]; UNKNOWN if the current forward got no ids of this shape. Waits for the device."""
        ids = _FORWARD_IDS.get()
        if not isinstance(ids, Tensor) or list(ids.shape) != [batch, columns]:
            return np.full((batch, columns), UNKNOWN, dtype=np.int32)
        found: Int32Array = ids.detach().to("cpu", torch.int32).numpy()
        return found

    def starts(
        self, starts: Int64Array | None, before: Sequence[int], counts: Int32Array, columns: int
    ) -> Int64Array | None:
        """Returns int64 [B], the position of each row's first token; the others follow consecutively.

        starts: those of the rows so far. before: tokens of each row. counts: new ones, in the last of the new
        columns. None: unknown. Waits for the device.

        Raises UnsupportedError for a new token that is not at the position after the previous token.
        """
        held, positions = np.array(before), self.positions
        if positions is None or positions.dim() != 2 or (starts is None and held.any()):
            return None
        at = positions.expand(len(held), columns).cpu().numpy()
        first = at[np.arange(len(held)), np.minimum(columns - counts, columns - 1)]
        found: Int64Array = first if starts is None else np.where(held > 0, starts, first)
        place = np.arange(columns) - (columns - counts[:, None])  # among the new tokens, padding below 0
        expected = found[:, None] + held[:, None] + place
        other = np.argwhere((place >= 0) & (at != expected))
        if len(other):
            row, column = other[0]
            raise UnsupportedError(
                f"position_ids: got {at[row, column]} for a new token of row {row}, expected "
                f"{expected[row, column]}, one behind the token before it, as the cache holds {held[row]} of "
                "the row: it is another prompt, or the same again, or the tokens before it stood elsewhere; "
                "pass position_ids that go on behind theirs, or call cache.reset()"
            )
        return found
