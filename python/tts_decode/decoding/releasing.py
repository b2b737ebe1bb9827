"""Releases the branches of a call, however it ended."""

from __future__ import annotations

from collections.abc import Iterable

from .branch import TreeBranch


def release_all(branches: Iterable[TreeBranch]) -> None:
    """Releases the branches; those already released stay so."""
    for branch in branches:
        if not branch.released:
            branch.release()
