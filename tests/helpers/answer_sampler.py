"""Scripts of whole answers, and votes over them."""

from collections import Counter

from plain_scripts import draw
from scripted import run_scripted, scripted_decoder, words

QUESTION = "Q: "


class Sampler:
    """Answers of `kinds` different conclusions, the first ones likelier, with log-probabilities."""

    def __init__(self, seed, kinds=4):
        self.seed, self.kinds = seed, kinds

    def __call__(self, prefix, k):
        u = draw(self.seed, prefix, k)
        text = "so " * (1 + int(7 * u) % 3) + f"way{int(1000 * u) % 9} gives {int(self.kinds * u * u)}"
        logprobs = [-3 * draw(self.seed, prefix, k, i) for i in range(len(words(text)))]
        return text, "eos", logprobs

    def texts(self, n):
        return [self(QUESTION, k)[0] for k in range(n)]

    def likelihood(self, k):
        logprobs = self(QUESTION, k)[2]
        return sum(logprobs) / (len(logprobs) + 1)  # the end's token has log-probability 0


def tally(answers, weights=None):
    answers, votes = list(answers), Counter()
    for answer, weight in zip(answers, weights or [1] * len(answers), strict=True):
        votes[answer] += weight
    return votes


def judged(seed, kinds, reply):
    """Answers to the question, `reply(prefix, k)` to any other prompt."""
    script = Sampler(seed, kinds)
    return script, lambda prefix, k: script(prefix, k) if prefix == QUESTION else (reply(prefix, k), "eos")


def sampled(script, strategy, **options):
    """The result of a strategy over answers of the script."""
    return run_scripted(scripted_decoder(script), strategy, QUESTION, **options)
