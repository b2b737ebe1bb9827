"""Whether an answer is right: equality of numbers, words and mathematics."""

from .equality import group, is_correct, needs_mathematics, same_answer, unjudged

__all__ = ["group", "is_correct", "needs_mathematics", "same_answer", "unjudged"]
