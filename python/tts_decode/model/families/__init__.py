"""Families of models that run over packed weights: what sets each apart, as data."""
