"""Graphs of prompts: decompositions, contractions, and stacks of operators."""
