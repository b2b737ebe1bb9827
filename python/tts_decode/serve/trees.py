"""The trees of finished searches, kept for a while under links that nobody can guess."""

from __future__ import annotations

import secrets
import threading
from collections import OrderedDict


class KeptTrees:
    """Keeps the most recently used trees; for any thread.

    Args:
        trees, size: maximum number, and total bytes.
    """

    def __init__(self, trees: int, size: int) -> None:
        self._trees, self._limit = trees, size
        self._kept: OrderedDict[str, bytes] = OrderedDict()
        self._size = 0
        self._lock = threading.Lock()

    def add(self, tree: bytes) -> str | None:
        """Returns the tree's id; None if it is too large to be kept."""
        if len(tree) > self._limit or not self._trees:
            return None
        name = secrets.token_urlsafe(16)
        with self._lock:
            self._kept[name] = tree
            self._size += len(tree)
            while len(self._kept) > self._trees or self._size > self._limit:
                self._size -= len(self._kept.popitem(last=False)[1])
        return name

    def get(self, name: str) -> bytes | None:
        with self._lock:
            if name in self._kept:
                self._kept.move_to_end(name)
            return self._kept.get(name)
