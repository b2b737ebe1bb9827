"""Gives back the branches of a call, whichever way it ended."""

from __future__ import annotations

from collections.abc import Iterable

from .branch import TreeBranch


def release_all(branches: Iterable[TreeBranch]) -> None:
    """Those that are released already stay so."""
    for branch in branches:
        if not branch.released:
            branch.release()
