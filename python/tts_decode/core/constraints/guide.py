"""A path's position in its constraint: a state that ends, forks and rolls back with the path."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ...errors import ConstraintError
from .protocol import Constraint, ConstraintState


class Guide:
    """The state of a constraint after some tokens.

    Args:
        ends: end-of-sequence tokens. They are allowed where the state accepts, and nothing after them.

    Attributes:
        count: tokens that it has taken.
    """

    def __init__(self, state: ConstraintState, ends: frozenset[int]) -> None:
        self._state, self._ends = state, ends
        self._ended = False
        self.count = 0

    @classmethod
    def start(cls, constraint: Constraint, tokenizer: Any, ends: frozenset[int]) -> Guide:
        """Returns the state before the first token.

        Raises:
            ConstraintError: the constraint is malformed.
        """
        return cls(constraint.start(tokenizer), ends)

    @property
    def accepts(self) -> bool:
        """Whether the text may end here, or has ended."""
        return self._ended or self._state.accepts

    def advance(self, token: int) -> None:
        """Takes the next token.

        Raises:
            ConstraintError: the token is not allowed; nothing changed.
        """
        if token in self._ends:
            fits = self._ended = not self._ended and self._state.accepts
        else:
            fits = not self._ended and token >= 0 and self._state.advance(token)
        if not fits:
            raise ConstraintError(
                f"tokens: got {token} as number {self.count + 1} after the prompt, expected one that the "
                "branch's constraint allows there; force other text on a `copy()`, which has no constraint"
            )
        self.count += 1

    def follow(self, tokens: Iterable[int]) -> None:
        """Takes tokens up to the first that is not allowed; raises for it like `advance`."""
        for token in tokens:
            self.advance(token)

    def check(self, tokens: Sequence[int]) -> None:
        """Raises like `follow`, and changes nothing."""
        self.cut(self.count).follow(tokens)

    def cut(self, count: int) -> Guide:
        """Returns another state, after the first `count` tokens."""
        other = Guide(self._state.fork(), self._ends)
        taken_back = self.count - count
        other._ended = self._ended and not taken_back
        other._state.rollback(taken_back - (self._ended and taken_back > 0))
        other.count = count
        return other

    def allowed(self, size: int) -> npt.NDArray[np.bool_]:
        """Returns bool [size], for a vocabulary of this size: whether each token is allowed next."""
        allowed = np.zeros(size, np.bool_)
        if not self._ended:
            mask = self._state.mask()[:size]
            allowed[: len(mask)] = mask
            allowed[[token for token in self._ends if token < size]] = self._state.accepts
        return allowed
