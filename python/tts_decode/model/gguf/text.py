"""Text from a file in our own messages."""

from __future__ import annotations


def shown(name: str) -> str:
    """A name for a message of one line: nothing in it acts on a terminal."""
    return repr(name[:100])[1:-1]
