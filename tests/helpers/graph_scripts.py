"""Building blocks for scripts of strategies on graphs of prompts."""

import math
import random
import zlib

from tts_decode import SamplingParams

QUESTION = "How old is Ann, who is twice as old as Bob?"
SEEDS = range(25)
LONG = SamplingParams(max_tokens=400)


def generator(*key):
    """A generator of random numbers that depends on the key alone."""
    return random.Random(zlib.crc32(repr(key).encode()))


def some_list(rng, most, needs=True):
    """A reply with 0..most list items."""
    count = rng.randint(0, most)
    lines = ["Let me see."]
    for i in range(1, count + 1):
        rests = f" (needs: {rng.randint(1, count)}, {rng.randint(1, count)})" if rng.random() < 0.6 else ""
        lines.append(f"{i}. part {rng.randint(0, 99)} -> {rng.randint(0, 9)}{rests if needs else ''}")
    return "\n".join(lines)


def plain_items(reply, most):
    """The first items of a reply of `some_list`, without what they need, and that as indices."""
    items, needs = [], []
    for line in reply.splitlines():
        mark, _, item = line.partition(". ")
        if mark.isdecimal() and len(items) < most:
            text, _, behind = item.partition(" (needs: ")
            items.append(text)
            needs.append([int(k) - 1 for k in behind.rstrip(")").split(", ") if k])
    return items, needs


def plain_numbered(texts):
    """Texts as the prompts show them, under [1], [2], ..."""
    return "\n\n".join(f"[{i + 1}] " + text for i, text in enumerate(texts))


def yes_log_prob(prompt, text):
    """Log-probabilities of " Yes" and "No" after a prompt, as one token."""
    p = generator("yes", prompt).random()
    return [math.log(p if text == "Yes" else 1 - p)]


def p_yes(prompt):
    return math.exp(yes_log_prob(prompt, "Yes")[0])
