"""Constraints on the text of a branch, and the position of a branch in its constraint."""
