"""Errors of the decoding API; `OutOfPages` is the kernel package's own."""

from tts_kernels import OutOfPages

__all__ = ["BranchReleased", "OutOfPages", "UnsupportedModel"]


class BranchReleased(RuntimeError):  # noqa: N818
    """A branch was used after `release()`; its KV pages may belong to somebody else by now."""


class UnsupportedModel(ValueError):  # noqa: N818
    """The model has a feature that the tree attention path does not serve; the message names it."""
