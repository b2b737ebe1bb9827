"""R-MCTS against a transcription: its selection, what surprises it, what it learns, and who reads that."""

import math
from collections import Counter

import pytest
from plain_scripts import prompts
from scripted import run_scripted, scorer, scripted_decoder
from tree_scripts import PROMPT, STEPS, PlainNode, make_script, score
from tts_decode import search
from tts_decode.search import ReflectionMemory

TEMPLATES = {
    "expect_prompt": "{question}[{state}|{step}] expect",
    "reflect_prompt": "{question}[{state}|{step}|{expected}|{actual}] reflect",
    "remind_prompt": "{question}<{reflections}>",
}


def told(seed, longest=3):
    steps = make_script(seed, longest=longest)

    def script(prefix, k):
        if prefix.endswith((" expect", " reflect")):
            return f"so {len(prefix)}{prefix[-4]}", "eos"
        return steps(prefix, k)

    return script


class PlainSearch:
    """The searches of one question, with no engine. asked: all prompts, in order."""

    def __init__(self, script, width, simulations, threshold):
        self.script, self.width, self.simulations, self.threshold = script, width, simulations, threshold
        self.counts, self.asked, self.learned, self.answers = Counter(), [], [], []

    def ask(self, prefix):
        self.counts[prefix] += 1
        self.asked.append(prefix)
        return self.script(prefix, self.counts[prefix] - 1)

    def expand(self, prompt, node):
        seen = []
        for _ in range(self.width):
            text, reason, logprobs = self.ask(prompt + node.text)
            if (text, reason) in seen:
                continue
            seen.append((text, reason))
            logprobs = [*logprobs, 0.0] if reason == "eos" else logprobs
            whole = node.text + text
            child = PlainNode(whole, node, score(whole), sum(logprobs) / len(logprobs), reason == "eos")
            node.children.append(child)
            if child.terminal:
                self.answers.append(whole)

    def select(self, node):
        weights = [math.exp(child.logprob) for child in node.children]
        came = sum(child.visits for child in node.children)

        def bound(i):
            child = node.children[i]
            prior = weights[i] / sum(weights)
            return child.value + prior * math.sqrt(max(1, came)) / (1 + child.visits)

        return node.children[max(range(len(node.children)), key=bound)]

    def search(self, prompt):
        root = PlainNode()
        for _ in range(self.simulations):
            node = root
            while node.children:
                node = self.select(node)
            if not node.terminal:
                self.expand(prompt, node)
                node = self.select(node)
            node.back_up(node.score)
        return root

    def reflect(self, root):
        path, node = [], root
        while node.children:
            node = max(node.children, key=lambda child: (child.visits, child.value))
            path.append(node)
        well = sum(n.value for n in path) / len(path) > 0.7
        gaps = [abs(n.score - n.value) for n in path]
        gaps[-1] = abs((1.0 if well else 0.0) - path[-1].value)
        at = max(range(len(path)), key=lambda i: (gaps[i], -i))
        if gaps[at] < self.threshold:
            return
        before = path[at - 1].text if at else ""
        step = path[at].text[len(before) :]
        expected = self.ask(f"{PROMPT}[{before}|{step}] expect")[0]
        if at + 1 < len(path):
            actual = path[at + 1].text[len(path[at].text) :]
        else:
            actual = "The attempt ended well." if well else "The attempt did not end well."
        lesson = self.ask(f"{PROMPT}[{before}|{step}|{expected}|{actual}] reflect")[0]
        self.learned.append(lesson)

    def run(self, rounds, keep):
        for number in range(rounds + 1):
            prompt = PROMPT
            if self.learned:  # the question is like itself
                prompt = f"{PROMPT}<" + "\n".join(f"- {text}" for text in self.learned[:2]) + ">"
            root = self.search(prompt)
            if keep or number < rounds:
                self.reflect(root)
        return root


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize(("rounds", "threshold", "keep"), [(2, 0.1, False), (1, 0.45, False), (0, 0.0, True)])
def test_searches_and_reflections_are_those_of_the_paper(seed, rounds, threshold, keep):
    plain = PlainSearch(told(seed), 3, 7, threshold)
    plain.run(rounds, keep)
    assert plain.answers
    memory = ReflectionMemory() if keep else None
    decoder = scripted_decoder(told(seed))
    result = run_scripted(
        decoder,
        search.r_mcts,
        PROMPT,
        sampling=STEPS,
        num_simulations=7,
        num_children=3,
        max_rounds=rounds,
        threshold=threshold,
        memory=memory,
        scorer=scorer(score),
        **TEMPLATES,
    )
    assert prompts(decoder) == plain.asked
    assert sorted(c.text for c in result.candidates if c.complete) == sorted(plain.answers)
    assert result.best.score == max(map(score, plain.answers))
    if keep:
        assert [r.text for r in memory.reflections] == plain.learned
        assert {r.question for r in memory.reflections} == {PROMPT}


def test_some_searches_learn_and_some_do_not():
    learned = set()
    for seed in range(10):
        plain = PlainSearch(told(seed), 3, 7, 0.45)
        plain.run(1, False)
        learned.add(len(plain.learned))
    assert learned == {0, 1}


def test_a_memory_serves_questions_that_are_alike():
    memory = ReflectionMemory()
    for question, lesson in (("What is 3 plus 4?", "add"), ("Name a river.", "look"), ("What is 3?", "read")):
        memory.reflections.append(search.Reflection(question, "step", lesson))
    assert [r.text for r in memory.retrieve("What is 3 plus 5?")] == ["add", "read"]
    assert memory.retrieve("zzz") == []
