"""The merges of a SentencePiece vocabulary, which a GGUF file gives as one score for each token.

llama.cpp joins, again and again, the two neighbours whose joined text is the token of the highest score, the
leftmost of equals. A list of pairs, those of the best token first, has the same order.
"""

from __future__ import annotations

from .token_types import CONTROL, UNKNOWN
from .vocabulary import Vocabulary


def merges_by_score(vocabulary: Vocabulary) -> list[tuple[str, str]]:
    """Every way to make a token of two others, the best first. Control and unknown tokens are never made."""
    tokens, types, scores = vocabulary.tokens, vocabulary.types, vocabulary.scores
    known = frozenset(tokens)
    merges = []
    for token in sorted(range(len(tokens)), key=lambda token: -scores[token]):
        text = tokens[token]
        if types[token] in (CONTROL, UNKNOWN):
            continue
        for cut in range(len(text) - 1, 0, -1):  # what is merged from the left has its short end on the right
            left, right = text[:cut], text[cut:]
            if left in known and right in known:
                merges.append((left, right))
    return merges
