"""Decoding API over search trees: branches, strategies, scorers."""
