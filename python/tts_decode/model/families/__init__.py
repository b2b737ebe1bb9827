"""Families of models that run over packed weights, with their differences as data."""
