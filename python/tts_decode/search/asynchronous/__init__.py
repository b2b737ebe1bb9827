"""Searches without a barrier between their branches."""

from tts_decode.search.asynchronous.atts import atts

__all__ = ["atts"]
