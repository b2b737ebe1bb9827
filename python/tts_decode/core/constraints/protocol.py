"""The interface of constraints; implement it for your own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from typing_extensions import Self


class ConstraintState(Protocol):
    """The position of one text in its constraint.

    End-of-sequence tokens are not part of it: the decoder allows them where `accepts` says so.
    """

    @property
    def accepts(self) -> bool:
        """Whether the text may end here."""

    def mask(self) -> npt.NDArray[np.bool_]:
        """Returns bool [n]: whether each token id may come next; ids from n on may not."""

    def advance(self, token: int) -> bool:
        """Takes the next token. Returns False if the token is not allowed; then nothing changed."""

    def fork(self) -> Self:
        """Returns an independent state at the same position."""

    def rollback(self, count: int) -> None:
        """Takes back the last `count` tokens; a fork can also take back tokens from before it was made."""


class Constraint(Protocol):
    """A rule that a text has to match. Two that are equal (`==`) count as the same."""

    def start(self, tokenizer: Any) -> ConstraintState:
        """Returns the state before the first token."""
