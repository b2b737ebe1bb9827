"""Scripts and scores for tree searches, and the nodes and expansions of their transcriptions."""

import math

from plain_scripts import number
from scripted import words
from tts_decode import SamplingParams

STEPS = SamplingParams(stop=("\n",), seed=1)
WHOLE = SamplingParams(seed=1)
PROMPT = "Q: "


def score(text):
    return number("score", text) % 1009 / 1009


def make_script(seed, longest=4, ends=5, kinds=3):
    """Answers of at most `longest` steps and an end, each of `kinds` kinds, with a log-probability each."""

    def script(prefix, k):
        draw = number(seed, prefix, k)
        if prefix.count("\n") >= longest or draw % ends == 0:
            text, reason = f"= {draw % 10}", "eos"
        else:
            text, reason = f"s{draw % kinds}\n", "stop_string"
        return text, reason, [-(draw % (7 + i)) / 3 for i in range(len(words(text)))]

    return script


class PlainNode:
    """A node of the transcriptions."""

    def __init__(self, text="", parent=None, value=0.0, logprob=0.0, terminal=False):
        self.text, self.parent, self.score, self.logprob, self.terminal = (
            text,
            parent,
            value,
            logprob,
            terminal,
        )
        self.children, self.visits, self.total = [], 0, 0.0

    @property
    def value(self):
        return self.total / self.visits if self.visits else self.score

    def back_up(self, value):
        node = self
        while node is not None:
            node.visits += 1
            node.total += value
            node = node.parent


def uct_bound(node, child):
    """llm-reasoners, mcts.py: `_uct`, with the unvisited child's own score."""
    return child.value + math.sqrt(math.log(max(node.visits, 1)) / max(1, child.visits))


def expand(script, node, width, asked):
    seen = []
    for _ in range(width):
        prefix = PROMPT + node.text
        text, reason, logprobs = script(prefix, asked.count(prefix))
        asked.append(prefix)
        if (text, reason) not in seen:
            seen.append((text, reason))
            whole = node.text + text
            logprobs = [*logprobs, 0.0] if reason == "eos" else logprobs
            mean = sum(logprobs) / len(logprobs)
            node.children.append(PlainNode(whole, node, score(whole), mean, reason == "eos"))


def answers(prefix, k):
    return f"answer {number(prefix, k) % 1000}", "eos"
