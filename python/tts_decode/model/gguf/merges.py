"""Derives the merges of a SentencePiece vocabulary, for which a GGUF file gives one score per token.

llama.cpp repeatedly joins the two neighbours whose joined text is the token with the highest score; the
leftmost wins a tie. A list of pairs, the best token's first, gives the same order.
"""

from __future__ import annotations

from .token_types import CONTROL, UNKNOWN
from .vocabulary import Vocabulary


def merges_by_score(vocabulary: Vocabulary) -> list[tuple[str, str]]:
    """Returns all pairs that join into a token, the best first. Control and unknown tokens are never made."""
    tokens, types, scores = vocabulary.tokens, vocabulary.types, vocabulary.scores
    known = frozenset(tokens)
    merges = []
    for token in sorted(range(len(tokens)), key=lambda token: -scores[token]):
        text = tokens[token]
        if types[token] in (CONTROL, UNKNOWN):
            continue
        for cut in range(len(text) - 1, 0, -1):  # merging from the left leaves the short part on the right
            left, right = text[:cut], text[cut:]
            if left in known and right in known:
                merges.append((left, right))
    return merges
