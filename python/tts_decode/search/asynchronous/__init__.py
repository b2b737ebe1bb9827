"""Searches without a barrier between their branches."""

from .atts import atts

__all__ = ["atts"]
