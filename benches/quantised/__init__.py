"""Decoding of quantised models: the compared files, how they are made, and the report on them."""
