"""How similar two texts are, by their words."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence


def lexical_similarity(one: str, other: str) -> float:
    """Returns the cosine of the word counts of two texts, in [0, 1]; numbers and single symbols are words."""
    a, b = (Counter(re.findall(r"\w+|[^\w\s]", text.lower())) for text in (one, other))
    dot = sum(count * b[word] for word, count in a.items())
    norms = math.sqrt(sum(c * c for c in a.values()) * sum(c * c for c in b.values()))
    return dot / norms if norms else 0.0


def most_similar(query: str, texts: Sequence[str]) -> int | None:
    """Returns the index of the text most like the query (ties: the first); None if no word is shared."""
    likeness = [lexical_similarity(query, text) for text in texts]
    best = max(range(len(texts)), key=likeness.__getitem__, default=None)
    return best if best is not None and likeness[best] > 0 else None
