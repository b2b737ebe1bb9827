"""Branches over a completion call: any strategy on another engine."""
