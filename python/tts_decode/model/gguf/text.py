"""Makes text from a file safe for our own messages."""

from __future__ import annotations


def shown(name: str) -> str:
    """Escapes and shortens a name for a one-line message, so that a terminal obeys nothing in it."""
    return repr(name[:100])[1:-1]
