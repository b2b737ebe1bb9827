"""Graphs of prompts: decompositions, contractions, and stacks of operators."""

from .adaptive_graph import adaptive_graph
from .archon import archon
from .aries import aries
from .atom_of_thoughts import atom_of_thoughts

__all__ = ["adaptive_graph", "archon", "aries", "atom_of_thoughts"]
