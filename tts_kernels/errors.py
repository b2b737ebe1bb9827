"""Exceptions of this package. Its functions raise TypeError, ValueError and MemoryError besides."""

from __future__ import annotations


class TTSError(Exception):
    """Base of the exceptions that tts-kernels defines."""


class OutOfPagesError(TTSError, RuntimeError):
    """A `KVTree` has fewer free pages than a call needs. Raised before anything has changed."""


class CapacityError(TTSError, ValueError):
    """A plan outgrew the fixed capacity of its `DevicePlanner`. The plan before stays as it was."""
