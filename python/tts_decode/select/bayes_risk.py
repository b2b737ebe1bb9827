"""Minimum Bayes risk: the sample that is most like all samples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence


def rouge_1(one: Sequence[Hashable], other: Sequence[Hashable]) -> float:
    """ROUGE-1 F1 of two sequences of tokens, in [0, 1]: tokens that both have, counted as often as both have
    them, over the mean of the two lengths; 0 if one is empty."""
    shared = (Counter(one) & Counter(other)).total()
    return 2 * shared / (len(one) + len(other)) if shared else 0.0


def expected_gains(samples: Sequence[Sequence[Hashable]]) -> list[float]:
    """Mean ROUGE-1 of each sample with all samples, itself included, in [0, 1].

    The one with the most has the least Bayes risk under the loss 1 - ROUGE-1, if the samples are draws of the
    law that counts, each as often as it was drawn (Faria and Smith, arXiv 2504.03790).
    """
    drawn = Counter(map(tuple, samples))
    gains = {
        one: sum(count * rouge_1(one, other) for other, count in drawn.items()) / len(samples)
        for one in drawn
    }
    return [gains[tuple(sample)] for sample in samples]
