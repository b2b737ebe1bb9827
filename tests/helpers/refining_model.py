"""A script of answers that are judged and rewritten, and how plain algorithms ask it."""

from collections import Counter

from plain_scripts import answer_of, draw
from scripted import run_scripted, scripted_decoder, words

QUESTION = "Q: "
SEEDS = range(8)


def score_of(text):
    return draw("score", text)


class Model:
    """The script, and the plain algorithms' way to ask it. Every text is another one, so that lines do not
    meet; it ends in one of `kinds` answers, or in a verdict where the prompt ends with "check".
    steps: lines of a text."""

    def __init__(self, seed, kinds=3, steps=1):
        self.seed, self.kinds, self.steps = seed, kinds, steps
        self.asked = Counter()
        self.likelihood = {}

    def __call__(self, prefix, k):
        u = draw(self.seed, prefix, k)
        body, end = f"t </think> w{int(1e9 * u)} so " + "hm " * (int(1e6 * u) % 4), "eos"
        if prefix.endswith("check"):
            text = f"{body}Verdict: {'correct' if u < 0.4 else 'wrong'}"
        elif prefix.rpartition("refine")[2].count("\n") < self.steps - 1:
            text, end = f"step w{int(1e9 * u)}\n", "stop_string"
        else:
            text = f"{body}{int(self.kinds * (1e3 * u % 1))}"
        return text, end, [-3 * draw(u, i) for i in range(len(words(text)))]

    def ask(self, prompt):
        """One whole text after the prompt."""
        said, logprobs, end = "", [], ""
        while end != "eos":
            text, end, some = self(prompt + said, self.asked[prompt + said])
            self.asked[prompt + said] += 1
            said += text
            logprobs += some
        self.likelihood[said] = sum(logprobs) / (len(logprobs) + 1)  # the end is a token too
        return said

    def voted(self, texts, weights=None):
        """The likeliest text of those with the answer of most votes."""
        tally = Counter()
        for text, weight in zip(texts, weights or [1] * len(texts), strict=True):
            tally[answer_of(text)] += weight
        winner = tally.most_common(1)[0][0]
        return max((t for t in texts if answer_of(t) == winner), key=self.likelihood.get)


def found(result):
    return sorted(candidate.text for candidate in result.candidates)


def refined(model, strategy, **options):
    """The result of a strategy on the script of a model that nobody asked yet."""
    return run_scripted(scripted_decoder(model), strategy, QUESTION, **options)
