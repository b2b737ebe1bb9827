"""Decides whether an answer is right: equality of numbers, words and mathematics."""

from .equality import is_correct, needs_mathematics, same_answer, unjudged
from .groups import group

__all__ = ["group", "is_correct", "needs_mathematics", "same_answer", "unjudged"]
