"""The interface of constraints; implement it to bring one of your own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from typing_extensions import Self


class ConstraintState(Protocol):
    """Where one text stands in its constraint. End-of-sequence tokens are no part of it: the decoder lets
    them be drawn where `accepts` says so."""

    @property
    def accepts(self) -> bool:
        """Whether the text may end here."""

    def mask(self) -> npt.NDArray[np.bool_]:
        """bool [n]: whether the token of each id may come next; ids from n on may not."""

    def advance(self, token: int) -> bool:
        """Takes the next token. False: it may not come, and nothing changed."""

    def fork(self) -> Self:
        """A state of its own in the same place."""

    def rollback(self, count: int) -> None:
        """Takes back the last `count` tokens; a fork also those of before it was made."""


class Constraint(Protocol):
    """What a text has to match. Two that are equal (`==`) are taken for the same."""

    def start(self, tokenizer: Any) -> ConstraintState:
        """The state before the first token."""
