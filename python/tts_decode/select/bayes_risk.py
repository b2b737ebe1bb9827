"""Minimum Bayes risk: the sample most similar to all samples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence


def rouge_1(one: Sequence[Hashable], other: Sequence[Hashable]) -> float:
    """Returns the ROUGE-1 F1 of two token sequences, in [0, 1]; 0 if one is empty.

    It is the number of tokens that both have, with multiplicity, over the mean of the two lengths.
    """
    shared = (Counter(one) & Counter(other)).total()
    return 2 * shared / (len(one) + len(other)) if shared else 0.0


def expected_gains(samples: Sequence[Sequence[Hashable]]) -> list[float]:
    """Returns the mean ROUGE-1 of each sample with all samples, itself included, in [0, 1].

    The sample with the largest value has the least Bayes risk under the loss 1 - ROUGE-1, if the samples are
    draws from the target distribution, each present as often as it was drawn (Faria and Smith, arXiv
    2504.03790).
    """
    drawn = Counter(map(tuple, samples))
    gains = {
        one: sum(count * rouge_1(one, other) for other, count in drawn.items()) / len(samples)
        for one in drawn
    }
    return [gains[tuple(sample)] for sample in samples]
