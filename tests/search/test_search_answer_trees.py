"""Trees whose nodes are whole answers, AB-MCTS and forest of thought, against plain transcriptions."""

import math
import random
from collections import Counter

import pytest
from plain_mixed import plain_draws
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


def plain_models(n, posterior, generator, scripts, rng):
    """AB-MCTS with several models, as treequest has it; (model, prompt) of each answer, in order."""
    draw = {"gaussian": draw_gaussian, "beta": draw_beta}.get(posterior)
    models = range(len(scripts))
    tree = [{"text": None, "parent": None, "seen": [], "children": [], "model": None}]
    asked, scored = [], [[] for _ in models]

    def best(draws):
        return draws.index(max(draws))

    def aggregated(kids):
        """GEN (None) or one of the children, each with all below it."""
        gen = draw([tree[kid]["seen"][0] for kid in kids], rng)
        cont = draw([s for kid in kids for s in tree[kid]["seen"][1:]], rng)
        if gen >= cont or not kids:
            return None
        return kids[best([draw(tree[kid]["seen"], rng) for kid in kids])]

    def settled(kid):
        counts = Counter(round(100 * s) for s in tree[kid]["seen"])
        return sum(counts.values()) >= 4 and max(counts.values()) >= 0.75 * sum(counts.values())

    def new_model():
        if len(scripts) == 1:
            return 0
        if generator == "ucb":
            total = sum(map(len, scored))
            return best(
                [sum(s) / len(s) + math.sqrt(2 * math.log(total) / len(s)) if s else math.inf for s in scored]
            )
        if posterior != "mixed":
            return best([draw(s, rng) for s in scored])
        known = [m for m in models if scored[m]]
        if not known:
            return rng.randrange(len(scored))
        unknown = [m for m in models if not scored[m]]
        return [*known, *unknown][best(plain_draws([scored[m] for m in known], rng, len(unknown)))]

    def decide(kids):
        """(child or None, model of a new one)"""
        if generator == "stack" and posterior != "mixed":
            own = [[kid for kid in kids if tree[kid]["model"] == m] for m in models]
            model = best([draw([s for kid in group for s in tree[kid]["seen"]], rng) for group in own])
            return aggregated(own[model]), model
        if posterior != "mixed":
            child = aggregated(kids)
            return child, new_model() if child is None else None
        stacks = models if generator == "stack" else [None]
        options = []
        for m in stacks:
            own = [kid for kid in kids if m is None or tree[kid]["model"] == m]
            draws = plain_draws([tree[kid]["seen"] for kid in own], rng, 1)
            options += zip(draws, [*own, None], [m] * len(draws), strict=True)
        ranked = sorted(options, key=lambda option: -option[0])
        if generator == "stack":
            return next((kid, m) for _, kid, m in ranked if kid is None or not settled(kid))
        kid = ranked[0][1]
        if kid is not None:
            kid = next((k for _, k, _ in ranked if k is not None and not settled(k)), None)
        return kid, new_model() if kid is None else None

    for _ in range(n):
        node = 0
        while True:
            child, model = decide(tree[node]["children"])
            if child is None:
                break
            node = child
        of = tree[node]
        prompt = PROMPT
        if node:
            prompt = AB_REFINE.format(question=PROMPT, answer=of["text"], score=of["seen"][0], feedback="")
        text, _ = scripts[model](prompt, asked.count((model, prompt)))
        asked.append((model, prompt))
        scored[model].append(score(text))
        tree.append({"text": text, "parent": node, "seen": [], "children": [], "model": model})
        above = len(tree) - 1
        of["children"].append(above)
        while above:
            tree[above]["seen"].append(score(text))
            above = tree[above]["parent"]
    return asked


@pytest.mark.parametrize("generator", ["thompson", "ucb", "stack"])
@pytest.mark.parametrize("posterior", ["gaussian", "beta", "mixed"])
@pytest.mark.parametrize("seed", range(2))
def test_ab_mcts_shares_the_answers_out_among_models(seed, posterior, generator):
    scripts = [lambda prefix, k, m=m: answers(f"{m} {prefix}", k) for m in range(3)]
    decoders = [scripted_decoder(script) for script in scripts]
    n = 8 if posterior == "mixed" else 16  # the transcription takes its time
    options = {"max_samples": n, "posterior": posterior, "generator": generator, "decoders": decoders[1:]}
    sampling = SamplingParams(seed=seed)
    result = run_scripted(decoders[0], ab_mcts, PROMPT, sampling=sampling, scorer=scorer(score), **options)
    asked = plain_models(n, posterior, generator, scripts, random.Random(seed))
    assert [prompts(decoder) for decoder in decoders] == [
        [prompt for model, prompt in asked if model == m] for m in range(3)
    ]
    assert len({model for model, _ in asked}) > 1
    assert len(result.candidates) == n
    assert all(decoder.stats().branches == 0 for decoder in decoders)


@pytest.mark.parametrize("seed", range(2))
def test_ab_mcts_m_with_one_model(seed):
    decoder = scripted_decoder(answers)
    options = {"max_samples": 8, "posterior": "mixed", "scorer": scorer(score)}
    run_scripted(decoder, ab_mcts, PROMPT, sampling=SamplingParams(seed=seed), **options)
    asked = plain_models(8, "mixed", "thompson", [answers], random.Random(seed))
    assert prompts(decoder) == [prompt for _, prompt in asked]
    assert 1 <= prompts(decoder).count(PROMPT) < 8


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


def rated_answers(prefix, k, blank=0):
    """Answers, ratings and an expert's verdict; of `blank` in 9 answers nothing can be read."""
    draw = number(prefix, k)
    if "0 to 100" in prefix:
        return f"I say {draw % 101}", "eos"
    if "You are an expert" in prefix:
        return f"Neither Answer 9 nor another.\nAnswer {1 + draw % 6}", "eos"
    return (f"unsure {draw % 99}" if draw % 9 < blank else f"answer {draw % 4}"), "eos"


def valid(text):
    return text if text.startswith("answer") else None


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


def plain_tree(ask, iterations, most, c=0.014):
    """One tree of the authors' code (`monte_carlo_tree`), without its look at the true answer, and with the
    paper's sparse activation: a layer is explored at its `most` best nodes, and a tree without a valid answer
    in its last layer stops. (text, Q, activation indicator)"""

    def rate(text):
        return int(ask.text(RATE.format(question=PROMPT, answer=text)).split()[-1]) / 100

    texts, parents = [ask.text(PROMPT)], [-1]
    rewards = [[rate(texts[0])]]
    if valid(texts[0]) is None:
        return texts[0], rewards[0][0], False
    texts.append(NO_ANSWER)
    parents.append(-1)
    rewards.append([rate(NO_ANSWER)])

    def layer(i):
        return 0 if parents[i] < 0 else 1 + layer(parents[i])

    def indicator():
        last = max(map(layer, range(len(texts))))
        return any(valid(text) for i, text in enumerate(texts) if layer(i) == last)

    for _ in range(iterations):
        if not indicator():
            break
        own, values, bounds = self_refined(rewards, parents, c)
        kids = [[own[j] for j, p in enumerate(parents) if p == i] for i in range(len(texts))]
        unripe = [i for i, below in enumerate(kids) if len(below) < 3 or max(below) < own[i]]
        kept = []
        for depth in set(map(layer, unripe)):
            of = [i for i in unripe if layer(i) == depth]
            of.sort(key=lambda i: (valid(texts[i]) is None, -values[i], i))
            kept += of[:most]
        weak = max(sorted(kept), key=lambda i: bounds[i])
        rewards[weak].append(rate(texts[weak]))
        critique = ask.text(CRITIQUE.format(question=PROMPT, answer=texts[weak]))
        better = ask.text(REFINE.format(question=PROMPT, answer=texts[weak], critique=critique))
        texts.append(better)
        parents.append(weak)
        rewards.append([rate(better)])
    _, values, _ = self_refined(rewards, parents, c)
    best = max((i for i in range(len(texts)) if i != 1), key=lambda i: (bool(valid(texts[i])), values[i]))
    return texts[best], values[best], indicator()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("decide_by", ["cgdm", "majority", "max"])
@pytest.mark.parametrize(("blank", "most"), [(0, 5), (4, 5), (3, 1)])
def test_forest_of_thought_grows_the_plain_trees_and_decides(seed, decide_by, blank, most):
    def script(prefix, k):
        return rated_answers(f"{seed} {prefix}", k, blank)

    decoder = scripted_decoder(script)
    options = {"max_trees": 4, "max_rounds": 5, "decide_by": decide_by, "correct_threshold": -math.inf}
    options |= {"max_active": most, "extract": valid}
    result = run_scripted(decoder, forest_of_thought, PROMPT, sampling=WHOLE, **options)

    ask, trees = PlainModel(script), []
    while len(trees) < 4:
        trees.append(plain_tree(ask, 5, most))
        leaders = [tree for tree in trees if tree[2]]
        votes = Counter(text for text, _, _ in leaders if valid(text))
        if len(trees) > 1 and max(votes.values(), default=0) > 2:
            break
    leaders = leaders or trees
    votes = Counter(text for text, _, _ in leaders if valid(text))
    assert result.votes == votes
    top = votes.most_common(1)[0] if votes else ("", 0)
    agreed = top[1] > len(leaders) / 2
    best = max(leaders, key=lambda leader: leader[1])[0]
    if votes and (decide_by == "majority" or (decide_by == "cgdm" and agreed)):
        assert votes[result.answer] == top[1]
    elif decide_by == "cgdm":
        shown = "\n\n".join(f"Answer {i}:\n{text}" for i, (text, _, _) in enumerate(leaders, start=1))
        verdict = ask.text(EXPERT.format(question=PROMPT, answers=shown))
        named = int(verdict.split()[-1])
        assert result.answer == (leaders[named - 1][0] if named <= len(leaders) else best)
    else:
        assert result.answer == best
    assert votes or blank
    assert asked(decoder) == ask.asked


def test_forest_of_thought_stops_a_tree_that_cannot_answer():
    """The second tree's answer cannot be read: no refinement, no vote, no part in the decision."""
    said = iter(["answer 1", "unsure", "answer 2"])

    def script(prefix, k):
        return (next(said) if prefix == PROMPT else "answer 3"), "eos"

    decoder = scripted_decoder(script)
    options = {"max_trees": 3, "max_rounds": 2, "decide_by": "max", "extract": valid}
    result = run_scripted(
        decoder,
        forest_of_thought,
        PROMPT,
        sampling=WHOLE,
        scorer=scorer(lambda t: float("u" in t)),
        **options,
    )
    assert sum(result.votes.values()) == 2
    assert len(prompts(decoder)) == 3 + 2 * 2 * 2  # a critique and a refinement in each round of two trees
    assert result.answer.startswith("answer")


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
