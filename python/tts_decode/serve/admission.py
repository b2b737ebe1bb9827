"""How many sequences are generated at a time, of all requests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from .errors import busy, invalid, unavailable


class Admission:
    """A request comes in whole or is refused at once: a queue would only hold connections open.

    Attributes:
        running: sequences that are generated now. closed: whether nothing is admitted any more.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.running = 0
        self.closed = False

    @contextmanager
    def admit(self, sequences: int, param: str = "n") -> Iterator[None]:
        """For as long as a request runs. Raises APIError: 400 for what can never fit, 429, 503."""
        if self.closed:
            raise unavailable("the server is shutting down")
        if sequences > self._limit:
            raise invalid(param, f"got {sequences} sequences in one request, expected at most {self._limit}")
        if self.running + sequences > self._limit:
            raise busy(f"{self.running} of {self._limit} sequences are in use; try again")
        self.running += sequences
        try:
            yield
        finally:
            self.running -= sequences
