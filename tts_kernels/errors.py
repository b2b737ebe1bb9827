"""Exceptions of this package. Its functions also raise TypeError, ValueError and MemoryError."""

from __future__ import annotations


class TTSError(Exception):
    """Base of the exceptions that tts-kernels defines."""


class OutOfPagesError(TTSError, RuntimeError):
    """A `KVTree` has fewer free pages than a call needs. Raised before anything changes."""


class CapacityError(TTSError, ValueError):
    """A plan outgrew the fixed capacity of its `DevicePlanner`. The previous plan stays as it was."""
