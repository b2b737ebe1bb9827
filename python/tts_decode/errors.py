"""Errors of the decoding API; `OutOfPages` is the kernel package's own."""

from tts_kernels import OutOfPages

__all__ = ["BranchReleased", "OutOfPages", "UnsupportedModel"]


class BranchReleased(RuntimeError):
    """A branch was used after `release()`; its KV pages may belong to somebody else by now."""


class UnsupportedModel(ValueError):
    """The model has a feature that the tree attention path does not serve; the message names it."""
