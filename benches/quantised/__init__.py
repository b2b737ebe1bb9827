"""Decoding of quantised models: which files are compared, how they are made, and what is told of them."""
