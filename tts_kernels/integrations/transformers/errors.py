"""Exceptions of this integration."""

from __future__ import annotations

from ...errors import TTSError


class UnsupportedError(TTSError, ValueError):
    """A model, a mask or a call of `generate` needs an unsupported feature; the message names it."""


class MaskError(UnsupportedError):
    """An attention mask hides what the cache holds, or pads elsewhere than on the left."""


class WrongCacheError(TTSError, TypeError):
    """A `TreeCache` met another attention implementation, or attn_implementation="tts" met another cache."""


class VersionError(TTSError, ImportError):
    """transformers is missing, or in a version that this integration was not tested with."""
