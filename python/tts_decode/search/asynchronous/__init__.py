"""Searches whose branches never wait for each other."""

from .atts import atts

__all__ = ["atts"]
