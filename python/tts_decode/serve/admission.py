"""Limits the sequences generated at a time, in total and per client."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from .config import Limits
from .errors import busy, invalid, unavailable


class Ticket:
    """Sequences that one request holds, from before its prompts are read until its work has ended.

    Attributes:
        sequences: their number.
    """

    def __init__(self, admission: Admission, client: str) -> None:
        self._admission, self._client = admission, client
        self.sequences = 0

    def widen(self, sequences: int, param: str = "n") -> None:
        """Holds `sequences` in total.

        Raises APIError and keeps what it held: 400 if they never fit, or 429.
        """
        more = sequences - self.sequences
        if more > 0:
            self._admission.take(more, sequences, self._client, param)
            self.sequences = sequences

    def release(self) -> None:
        """Returns all sequences; a second call does nothing."""
        self._admission.give(self.sequences, self._client)
        self.sequences = 0


class Admission:
    """Admits a request in whole or refuses it at once: a queue would only hold connections open.

    For the loop that speaks HTTP.

    Attributes:
        running: sequences held now. closed: whether nothing is admitted any more.
    """

    def __init__(self, limits: Limits) -> None:
        self._limit = limits.sequences
        self._share = self._limit if limits.client_sequences is None else limits.client_sequences
        self._clients: Counter[str] = Counter()
        self.running = 0
        self.closed = False

    def admit(self, sequences: int, client: str) -> Ticket:
        """Admits a request. Raises APIError: 400 for what can never fit, 429, 503."""
        if self.closed:
            raise unavailable("the server is shutting down")
        ticket = Ticket(self, client)
        ticket.widen(sequences)
        return ticket

    def take(self, more: int, sequences: int, client: str, param: str) -> None:
        """Takes sequences for a ticket. sequences: the total that it then holds."""
        most = min(self._limit, self._share)
        if sequences > most:
            raise invalid(param, f"got {sequences} sequences in one request, expected at most {most}")
        if self.running + more > self._limit:
            raise busy(f"{self.running} of {self._limit} sequences are in use; try again")
        if self._clients[client] + more > self._share:
            raise busy(f"{self._clients[client]} of your {self._share} sequences are in use; try again")
        self.running += more
        self._clients[client] += more

    def give(self, sequences: int, client: str) -> None:
        """Returns a ticket's sequences."""
        self.running -= sequences
        self._clients[client] -= sequences
        if not self._clients[client]:
            del self._clients[client]  # keeps no entry for clients that left


@contextmanager
def released_on_error(ticket: Ticket) -> Iterator[None]:
    """Releases the ticket on an error; if the body succeeds, the request's work keeps it."""
    try:
        yield
    except BaseException:
        ticket.release()
        raise
