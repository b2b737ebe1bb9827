"""Trees whose nodes are whole answers, AB-MCTS and forest of thought, against plain transcriptions."""

import math
import random
from collections import Counter

import pytest
from plain_scripts import PlainModel, asked, number, prompts
from scripted import run_scripted, scorer, scripted_decoder
from tree_scripts import PROMPT, WHOLE, answers, score
from tts_decode import SamplingParams
from tts_decode.search import ab_mcts, forest_of_thought
from tts_decode.search.trees.ab_mcts import REFINE as AB_REFINE
from tts_decode.search.trees.forest_of_thought import (
    CORRECT,
    CRITIQUE,
    EXAMPLE,
    EXPERT,
    NO_ANSWER,
    RATE,
    REFINE,
)

# -- ab_mcts


def draw_gaussian(scores, rng):
    """Normal-inverse-chi-squared posterior: Murphy, "Probabilistic Machine Learning", 3.4.3.3."""
    m, kappa, nu, tau = 0.0, 1.0, 1.0, 0.1
    n, mean = len(scores), sum(scores) / max(len(scores), 1)
    squares = sum((s - mean) ** 2 for s in scores)
    tau = (nu * tau + squares + n * kappa * (m - mean) ** 2 / (kappa + n)) / (nu + n)
    m, kappa, nu = (kappa * m + n * mean) / (kappa + n), kappa + n, nu + n
    variance = nu * tau / (2 * rng.gammavariate(nu / 2, 1.0))
    return rng.gauss(m, math.sqrt(variance / kappa))


def draw_beta(scores, rng):
    return rng.betavariate(0.5 + sum(scores), 0.5 + sum(1 - s for s in scores))


def plain_ab_mcts(n, draw, rng):
    """AB-MCTS-A; returns the prompts asked, in order."""
    tree, asked = [{"text": None, "parent": None, "seen": [], "children": []}], []
    for _ in range(n):
        node = 0
        while True:
            kids = tree[node]["children"]
            gen = draw([tree[kid]["seen"][0] for kid in kids], rng)
            cont = draw([s for kid in kids for s in tree[kid]["seen"][1:]], rng)
            if not kids or gen >= cont:
                break
            draws = [draw(tree[kid]["seen"], rng) for kid in kids]
            node = kids[draws.index(max(draws))]
        if node == 0:
            prompt = PROMPT
        else:
            of = tree[node]
            prompt = AB_REFINE.format(question=PROMPT, answer=of["text"], score=of["seen"][0], feedback="")
        text, _ = answers(prompt, asked.count(prompt))
        asked.append(prompt)
        tree.append({"text": text, "parent": node, "seen": [], "children": []})
        new = len(tree) - 1
        tree[node]["children"].append(new)
        above = new
        while above:
            tree[above]["seen"].append(score(text))
            above = tree[above]["parent"]
    return asked


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("posterior", "draw"), [("gaussian", draw_gaussian), ("beta", draw_beta)])
def test_ab_mcts_samples_and_refines_as_the_plain_search(seed, posterior, draw):
    decoder = scripted_decoder(answers)
    sampling = SamplingParams(seed=seed)
    options = {"max_samples": 25, "posterior": posterior, "scorer": scorer(score)}
    result = run_scripted(decoder, ab_mcts, PROMPT, sampling=sampling, **options)
    asked = plain_ab_mcts(25, draw, random.Random(seed))
    assert prompts(decoder) == asked
    assert 1 < asked.count(PROMPT) < 25  # both kinds occur
    assert result.best.score == max(score(candidate.text) for candidate in result.candidates)


def test_ab_mcts_shows_feedback_and_names_the_answer_it_refines():
    decoder = scripted_decoder(answers)
    options = {
        "max_samples": 12,
        "scorer": scorer(lambda text: 0.0),
        "feedback": lambda text: f"tests of {text}: 3",
    }
    result = run_scripted(decoder, ab_mcts, PROMPT, sampling=WHOLE, **options)
    nodes = {candidate.node: candidate.text for candidate in result.candidates}
    prompts = [node for node in result.tree[1:] if node.status == "prompt"]
    assert prompts
    for node in prompts:
        (source,) = node.sources
        assert f"tests of {nodes[source]}: 3" in node.text


# -- forest of thought


def rated_answers(prefix, k):
    draw = number(prefix, k)
    return (f"I say {draw % 101}" if "0 to 100" in prefix else f"answer {draw % 4}"), "eos"


def self_refined(rewards, parents, c):
    """MCTSr: (Q, bounds) by recursion."""
    own = [(min(r) + sum(r) / len(r)) / 2 for r in rewards]

    def q(i):
        below = [q(j) for j, parent in enumerate(parents) if parent == i]
        return (own[i] + max(below)) / 2 if below else own[i]

    values = [q(i) for i in range(len(own))]
    above = [len(rewards[p]) if p >= 0 else 0 for p in parents]
    return (
        own,
        values,
        [v + c * math.sqrt(math.log(a + 1) / len(r)) for v, a, r in zip(values, above, rewards, strict=True)],
    )


def plain_tree(ask, iterations, c=0.014):
    """One tree of the authors' code (`monte_carlo_tree`), without its look at the true answer."""

    def rate(text):
        return int(ask.text(RATE.format(question=PROMPT, answer=text)).split()[-1]) / 100

    texts, parents = [ask.text(PROMPT)], [-1, -1]
    rewards = [[rate(texts[0])], [rate(NO_ANSWER)]]
    texts.append(NO_ANSWER)
    for _ in range(iterations):
        own, _, bounds = self_refined(rewards, parents, c)
        kids = [[own[j] for j, p in enumerate(parents) if p == i] for i in range(len(texts))]
        unripe = [i for i, below in enumerate(kids) if len(below) < 3 or max(below) < own[i]]
        weak = max(unripe, key=lambda i: bounds[i])
        rewards[weak].append(rate(texts[weak]))
        critique = ask.text(CRITIQUE.format(question=PROMPT, answer=texts[weak]))
        better = ask.text(REFINE.format(question=PROMPT, answer=texts[weak], critique=critique))
        texts.append(better)
        parents.append(weak)
        rewards.append([rate(better)])
    _, values, _ = self_refined(rewards, parents, c)
    best = max((i for i in range(len(texts)) if i != 1), key=lambda i: values[i])
    return texts[best], values[best]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("decide_by", ["cgdm", "majority", "max"])
def test_forest_of_thought_grows_the_plain_trees_and_decides(seed, decide_by):
    def script(prefix, k):
        return rated_answers(f"{seed} {prefix}", k)

    def believed(prompt, text):
        p = (1 + number(prompt) % 97) / 99
        return [math.log(p if text == "Yes" else 1 - p)]

    decoder = scripted_decoder(script, logprobs_of=believed)
    options = {"max_trees": 4, "max_rounds": 5, "decide_by": decide_by, "correct_threshold": -math.inf}
    result = run_scripted(decoder, forest_of_thought, PROMPT, sampling=WHOLE, extract=str, **options)

    ask, leaders = PlainModel(script), []
    while len(leaders) < 4:
        leaders.append(plain_tree(ask, 5))
        votes = Counter(text for text, _ in leaders)
        if len(leaders) > 1 and max(votes.values()) > 2:
            break
    assert asked(decoder) == ask.asked
    assert result.votes == votes
    top = votes.most_common(1)[0]
    if decide_by == "majority" or (decide_by == "cgdm" and top[1] > len(leaders) / 2):
        assert votes[result.answer] == top[1]
    elif decide_by == "max":
        assert result.answer == max(leaders, key=lambda leader: leader[1])[0]
    else:
        prompts = {text: EXPERT.format(question=PROMPT, answer=text) for text, _ in leaders}
        assert result.answer == max(prompts, key=lambda text: believed(prompts[text], "Yes"))


def test_forest_of_thought_corrects_what_it_is_unsure_of():
    """Below the threshold the answer is asked for again; the likelier of the two stays."""
    logprobs = {PROMPT: -3.0, CORRECT.format(question=PROMPT, answer="first"): -0.5}

    def script(prefix, k):
        return ("first" if prefix == PROMPT else "second"), "eos", [logprobs[prefix]]

    options = {"max_trees": 1, "max_rounds": 0, "scorer": scorer(score)}
    for threshold, answer in ((-1.0, "second"), (-2.0, "first")):  # the mean counts the end token
        decoder = scripted_decoder(script)
        result = run_scripted(
            decoder, forest_of_thought, PROMPT, sampling=WHOLE, correct_threshold=threshold, **options
        )
        assert result.answer == answer
    logprobs[CORRECT.format(question=PROMPT, answer="first")] = -9.0
    result = run_scripted(scripted_decoder(script), forest_of_thought, PROMPT, sampling=WHOLE, **options)
    assert result.answer == "first"


def test_forest_of_thought_begins_later_trees_with_the_likest_example():
    examples = [("Name a prime", "Seven"), ("What is Q", "It is 3")]
    decoder = scripted_decoder(answers)
    options = {"max_trees": 3, "max_rounds": 0, "decide_by": "max", "scorer": scorer(score), "extract": str}
    run_scripted(decoder, forest_of_thought, PROMPT, sampling=WHOLE, examples=examples, **options)
    shown = EXAMPLE.format(example="What is Q", solution="It is 3", question=PROMPT)
    assert prompts(decoder) == [PROMPT, shown, shown]
