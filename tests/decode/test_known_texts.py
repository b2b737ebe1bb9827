"""The index of known texts finds what a look at all of them finds."""

import random
from array import array

from tts_decode.decoding.known_texts import KnownText, TextIndex, common


def made(text, first):
    """A token for each character behind the first ones, which are known as a whole only."""
    return KnownText(text, array("q", range(len(text))), first - 1, array("q", range(first, len(text) + 1)))


def shared(one, other):
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


def test_the_common_beginning_is_counted():
    rng = random.Random(1)
    for _ in range(500):
        one, other = ("".join(rng.choices("ab", k=rng.randrange(12))) for _ in range(2))
        assert common(one, other) == shared(one, other)


def test_the_longest_known_beginning_is_found():
    rng = random.Random(2)
    for _ in range(300):
        index, texts = TextIndex(), []
        for _ in range(rng.randrange(1, 30)):
            text = "".join(rng.choices("ab", k=rng.randrange(1, 12)))
            texts.append(made(text, rng.randrange(1, len(text) + 1)))
            index.add(texts[-1])
        for gone in rng.sample(texts, len(texts) // 3):
            texts.remove(gone)
            index.remove(gone)
        asked = "".join(rng.choices("ab", k=12))
        lengths = [shared(known.text, asked) for known in texts]
        expected = max((n for n, known in zip(lengths, texts, strict=True) if n >= known.first), default=0)
        assert index.best(asked)[1] == expected
