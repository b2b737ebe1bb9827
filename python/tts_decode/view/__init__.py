"""Saved searches as one HTML page that needs no network: see docs/viewer.md."""

from .page import MOST_BYTES, Page, Problem, Shown, make_page

__all__ = ["MOST_BYTES", "Page", "Problem", "Shown", "make_page"]
