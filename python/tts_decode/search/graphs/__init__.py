"""Graphs of prompts: decompositions, contractions, and stacks of operators."""

from tts_decode.search.graphs.adaptive_graph import adaptive_graph
from tts_decode.search.graphs.archon import archon
from tts_decode.search.graphs.aries import aries
from tts_decode.search.graphs.atom_of_thoughts import atom_of_thoughts

__all__ = ["adaptive_graph", "archon", "aries", "atom_of_thoughts"]
