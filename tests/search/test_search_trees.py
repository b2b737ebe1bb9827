"""Tree searches against plain transcriptions of their papers' algorithms, on the same script and scores."""

import math
import random
import zlib
from collections import Counter

import pytest
from scripted import run_scripted, scorer, scripted_decoder, words
from tts_decode import SamplingParams
from tts_decode.search import (
    ab_mcts,
    forest_of_thought,
    mcts,
    mcts_judge,
    r2_retrieval,
    reward_guided_tree_search,
)
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
from tts_decode.search.trees.mcts_judge import (
    ANALYSE,
    PERSPECTIVES,
    RUN_TEST,
    VERDICT,
    WORTH_ASKING,
    WRITE_TESTS,
)
from tts_decode.search.trees.r2_retrieval import TEMPLATE, WITH_STEP, WITH_TEMPLATES
from tts_decode.select import lexical_similarity

STEPS = SamplingParams(stop=("\n",), seed=1)
WHOLE = SamplingParams(seed=1)
PROMPT = "Q: "


def number(*parts):
    """A number that depends on all of the parts, below 2 ** 32."""
    return zlib.crc32(repr(parts).encode())


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


def prefixes(decoder):
    return [call.prefix for call in decoder.complete.calls]


# -- mcts


class Plain:
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


def puct_bound(node, child):
    """openr, tree.py: `_ucb_score`, with the siblings' probabilities per token made to sum to 1."""
    c = math.log((node.visits + 19652 + 1) / 19652) + 1.25
    prior = math.exp(child.logprob) / sum(math.exp(sibling.logprob) for sibling in node.children)
    return child.value + c * math.sqrt(node.visits) / (child.visits + 1) * prior


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
            node.children.append(Plain(whole, node, score(whole), mean, reason == "eos"))


def plain_mcts(script, n, width, bound):
    """Simulations from the root down to an answer; (prompts asked in order, answers by visit)."""
    root, asked, ends = Plain(), [], []
    for _ in range(n):
        node = root
        while not node.terminal:
            if not node.children:
                expand(script, node, width, asked)
            at = node
            node = max(at.children, key=lambda child: bound(at, child))
        node.back_up(node.score)
        ends.append(node)
    return root, asked, ends


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("selection", "bound"), [("puct", puct_bound), ("uct", uct_bound)])
def test_mcts_makes_the_choices_of_the_plain_search(seed, selection, bound):
    script = make_script(seed)
    decoder = scripted_decoder(script)
    result = run_scripted(
        decoder,
        mcts,
        PROMPT,
        sampling=STEPS,
        num_simulations=12,
        num_children=3,
        selection=selection,
        scorer=scorer(score),
    )
    root, asked, ends = plain_mcts(script, 12, 3, bound)
    assert prefixes(decoder) == asked
    assert {end.text for end in ends} <= {candidate.text for candidate in result.candidates}
    assert result.best.score == max(score(candidate.text) for candidate in result.candidates)
    visits = run_scripted(
        scripted_decoder(script),
        mcts,
        PROMPT,
        sampling=STEPS,
        num_simulations=12,
        num_children=3,
        selection=selection,
        decide_by="visits",
        scorer=scorer(score),
    )
    while root.children:
        root = max(root.children, key=lambda child: (child.visits, child.value))
    assert visits.answer == root.text


@pytest.mark.parametrize("seed", range(3))
def test_mcts_expands_what_llm_reasoners_expands(seed):
    """RAP's search with the same UCT; the reward of a path is that of its end."""
    pytest.importorskip("reasoners")
    from reasoners import SearchConfig, WorldModel
    from reasoners.algorithm import MCTS

    script, asked = make_script(seed), []

    class Words(WorldModel):
        def init_state(self):
            return ("", False)

        def step(self, state, action):
            return action, {}

        def is_terminal(self, state):
            return state[1]

    class Scores(SearchConfig):
        def get_actions(self, state):
            asked.extend([PROMPT + state[0]] * 3)
            steps = [script(PROMPT + state[0], k) for k in range(3)]
            return list(dict.fromkeys((state[0] + text, reason == "eos") for text, reason, _ in steps))

        def fast_reward(self, state, action):
            return score(action[0]), {}

        def reward(self, state, action):
            return score(action[0]), {}

    theirs = MCTS(n_iters=8, depth_limit=40, cum_reward=lambda rewards: rewards[-1])
    found = theirs(Words(), Scores())
    decoder = scripted_decoder(script)
    options = {"num_simulations": 8, "num_children": 3, "selection": "uct", "scorer": scorer(score)}
    result = run_scripted(decoder, mcts, PROMPT, sampling=STEPS, **options)
    assert prefixes(decoder) == asked
    assert found.terminal_state[0] in {candidate.text for candidate in result.candidates}


@pytest.mark.parametrize("simulate", ["rollout", "value"])
def test_mcts_backs_up_rollouts_or_values(simulate):
    """One expansion a simulation; its value from an answer sampled beyond the tree, or from the new child."""
    script = make_script(3)
    decoder = scripted_decoder(script)
    options = {
        "num_simulations": 9,
        "num_children": 2,
        "selection": "uct",
        "simulate": simulate,
        "scorer": scorer(score),
    }
    result = run_scripted(decoder, mcts, PROMPT, sampling=STEPS, **options)

    root, asked, rolled = Plain(), [], []
    for _ in range(9):
        node = root
        while node.children:
            node = max(node.children, key=lambda child, at=node: uct_bound(at, child))
        if not node.terminal:
            expand(script, node, 2, asked)
            node = max(node.children, key=lambda child, at=node: uct_bound(at, child))
        value = node.score
        if simulate == "rollout" and not node.terminal:
            text, reason = node.text, None
            while reason != "eos":
                said, reason, _ = script(PROMPT + text, asked.count(PROMPT + text))
                asked.append(PROMPT + text)
                text += said
            rolled.append(text)
            value = score(text)
        node.back_up(value)
    assert prefixes(decoder)[: len(asked)] == asked
    assert set(rolled) <= {candidate.text for candidate in result.candidates}
    assert all(candidate.complete for candidate in result.candidates)


def test_parallel_simulations_share_forwards_and_spread_out():
    """Four at once: every expansion but the root's serves several leaves, and no leaf is expanded twice."""
    decoder, calls = scripted_decoder(make_script(1)), []
    options = {"num_simulations": 8, "num_children": 3, "parallel": 4, "exploration": 2.0, "selection": "uct"}
    run_scripted(decoder, mcts, PROMPT, sampling=STEPS, scorer=scorer(score, calls), **options)
    assert max(len(texts) for texts in calls) > 3
    asked = prefixes(decoder)
    assert all(asked.count(prefix) == 3 for prefix in asked)


def test_mcts_takes_unknown_probabilities_as_equal():
    """As from an engine that tells no log-probabilities."""

    def script(prefix, k, value=math.nan):
        text, reason, logprobs = make_script(2)(prefix, k)
        return text, reason, [value] * len(logprobs)

    decoder = scripted_decoder(script)
    run_scripted(
        decoder, mcts, PROMPT, sampling=STEPS, num_simulations=6, num_children=3, scorer=scorer(score)
    )
    _, asked, _ = plain_mcts(lambda prefix, k: script(prefix, k, 0.0), 6, 3, puct_bound)
    assert prefixes(decoder) == asked


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"selection": "ucb"}, "selection: got 'ucb', expected one of 'puct', 'uct'"),
        ({"simulate": "none"}, "simulate: got 'none'"),
        ({"decide_by": "mean"}, "decide_by: got 'mean'"),
        ({"parallel": 0}, "parallel: got 0"),
    ],
)
def test_bad_options_of_mcts_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        run_scripted(
            scripted_decoder(answers), mcts, PROMPT, num_simulations=2, scorer=scorer(score), **options
        )


def test_max_depth_ends_paths_as_they_stand():
    options = {"num_simulations": 3, "num_children": 2, "max_steps": 2, "scorer": scorer(score)}
    decoder = scripted_decoder(lambda prefix, k: (f"s{k} {len(prefix)}\n", "stop_string"))
    result = run_scripted(decoder, mcts, PROMPT, sampling=STEPS, **options)
    assert {candidate.text.count("\n") for candidate in result.candidates} == {2}
    assert result.best.score == max(candidate.score for candidate in result.candidates)


# -- ab_mcts


def answers(prefix, k):
    return f"answer {number(prefix, k) % 1000}", "eos"


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
    assert prefixes(decoder) == asked
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


class Asked:
    """The script, asked by the transcriptions: counts what it was asked, as the engine does."""

    def __init__(self, script):
        self.script, self.counts = script, Counter()

    def __call__(self, prompt):
        self.counts[prompt] += 1
        return self.script(prompt, self.counts[prompt] - 1)[0]


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
        return int(ask(RATE.format(question=PROMPT, answer=text)).split()[-1]) / 100

    texts, parents = [ask(PROMPT)], [-1, -1]
    rewards = [[rate(texts[0])], [rate(NO_ANSWER)]]
    texts.append(NO_ANSWER)
    for _ in range(iterations):
        own, _, bounds = self_refined(rewards, parents, c)
        kids = [[own[j] for j, p in enumerate(parents) if p == i] for i in range(len(texts))]
        unripe = [i for i, below in enumerate(kids) if len(below) < 3 or max(below) < own[i]]
        weak = max(unripe, key=lambda i: bounds[i])
        rewards[weak].append(rate(texts[weak]))
        critique = ask(CRITIQUE.format(question=PROMPT, answer=texts[weak]))
        better = ask(REFINE.format(question=PROMPT, answer=texts[weak], critique=critique))
        texts.append(better)
        parents.append(weak)
        rewards.append([rate(better)])
    _, values, _ = self_refined(rewards, parents, c)
    best = max((i for i in range(len(texts)) if i != 1), key=lambda i: values[i])
    return texts[best], values[best]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("decide_by", ["cgdm", "majority", "score"])
def test_forest_of_thought_grows_the_plain_trees_and_decides(seed, decide_by):
    def script(prefix, k):
        return rated_answers(f"{seed} {prefix}", k)

    def believed(prompt, text):
        p = (1 + number(prompt) % 97) / 99
        return [math.log(p if text == "Yes" else 1 - p)]

    decoder = scripted_decoder(script, logprobs_of=believed)
    options = {"max_trees": 4, "max_rounds": 5, "decide_by": decide_by, "correct_threshold": -math.inf}
    result = run_scripted(decoder, forest_of_thought, PROMPT, sampling=WHOLE, extract=str, **options)

    ask, leaders = Asked(script), []
    while len(leaders) < 4:
        leaders.append(plain_tree(ask, 5))
        votes = Counter(text for text, _ in leaders)
        if len(leaders) > 1 and max(votes.values()) > 2:
            break
    assert Counter(prefixes(decoder)) == ask.counts
    assert result.votes == votes
    top = votes.most_common(1)[0]
    if decide_by == "majority" or (decide_by == "cgdm" and top[1] > len(leaders) / 2):
        assert votes[result.answer] == top[1]
    elif decide_by == "score":
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
    options = {"max_trees": 3, "max_rounds": 0, "decide_by": "score", "scorer": scorer(score), "extract": str}
    run_scripted(decoder, forest_of_thought, PROMPT, sampling=WHOLE, examples=examples, **options)
    shown = EXAMPLE.format(example="What is Q", solution="It is 3", question=PROMPT)
    assert prefixes(decoder) == [PROMPT, shown, shown]


# -- reward-guided tree search


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("consistency", [0.0, 0.5])
def test_reward_guided_tree_search_expands_the_best_leaf_of_all(seed, consistency):
    script = make_script(seed, 12, 9, 9)
    decoder = scripted_decoder(script)
    options = {
        "max_samples": 30,
        "num_children": 2,
        "pre_expansion": 4,
        "consistency_weight": consistency,
        "extract": lambda t: t[-1],
    }
    result = run_scripted(
        decoder, reward_guided_tree_search, PROMPT, sampling=STEPS, scorer=scorer(score), **options
    )

    root, asked, found = Plain(), [], []

    def leaves(node):
        if node.children:
            return [leaf for child in node.children for leaf in leaves(child)]
        return [] if node.terminal else [node]

    def bound(leaf):
        above = leaf.parent.visits if leaf.parent else 0
        return leaf.value + math.sqrt(math.log(max(above, 1)) / max(1, leaf.visits))

    def reward(text):
        share = sum(other[-1] == text[-1] for other in found) / len(found)
        return (1 - consistency) * score(text) + consistency * share

    while len(found) < 30:
        leaf = max(leaves(root), key=bound)
        expand(script, leaf, 4 if leaf is root else 2, asked)
        for child in leaf.children[: 30 - len(found)]:
            text, done = child.text, child.terminal
            while not done:
                said, reason, _ = script(PROMPT + text, asked.count(PROMPT + text))
                asked.append(PROMPT + text)
                text, done = text + said, reason == "eos"
            found.append(text)
            child.back_up(reward(text))
    assert Counter(prefixes(decoder)) == Counter(asked)
    assert result.votes == Counter(text[-1] for text in found)
    assert result.answer == max(found, key=reward)


# -- mcts_judge


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("num_tests", [0, 3])
def test_mcts_judge_judges_as_the_plain_search(seed, num_tests):
    def script(prefix, k):
        if prefix == WRITE_TESTS.format(question=PROMPT, number=3):
            return "test a\n\n test b\ntest c\ntest d", "eos"
        return f"text {number(seed, prefix, k) % 10_000}", "eos"

    def p_yes(prompt):
        return (1 + number(seed, prompt) % 97) / 99

    def believed(prompt, text):
        return [math.log(p_yes(prompt) if text == "Yes" else 1 - p_yes(prompt))]

    decoder = scripted_decoder(script, logprobs_of=believed)
    options = {"n": 3, "num_simulations": 7, "max_depth": 3, "num_tests": num_tests, "self_assessment": 0.5}
    result = run_scripted(decoder, mcts_judge, PROMPT, sampling=WHOLE, **options)

    def judge(answer):
        about = {"question": PROMPT, "answer": answer}
        passed = [p_yes(RUN_TEST.format(test=f"test {t}", **about)) for t in "abc"[:num_tests]]
        visits, rewards, verdicts = Counter(), Counter(), {}
        judged = []
        for _ in range(7):
            path = ()
            while len(path) < 3:
                told = "".join(
                    f"{p} {'Yes' if verdicts[path[: i + 1]] >= 0.5 else 'No'}\n" for i, p in enumerate(path)
                )

                def bound(perspective, path=path, told=told):
                    child = (*path, perspective)
                    worth = p_yes(WORTH_ASKING.format(findings=told, perspective=perspective, **about))
                    bonus = math.sqrt(math.log(max(visits[path], 1)) / max(visits[child], 1))
                    return rewards[child] / max(visits[child], 1) + bonus + 0.5 * worth

                chosen = max((p for p in PERSPECTIVES if p not in path), key=bound)
                path = (*path, chosen)
                if path not in verdicts:
                    prompt = ANALYSE.format(findings=told, perspective=chosen, **about)
                    analysis, _ = script(prompt, 0)
                    verdicts[path] = p_yes(VERDICT.format(perspective=chosen, analysis=analysis, **about))
            seen = [verdicts[path[: i + 1]] for i in range(3)]
            fine = sum(v >= 0.5 for v in seen) >= 1.5
            agrees = not passed or fine == (sum(p >= 0.5 for p in passed) >= len(passed) / 2)
            for i in range(4):
                visits[path[:i]] += 1
                rewards[path[:i]] += agrees
            judged.append((sum(seen) / 3, agrees))
        rewarded = [verdict for verdict, agrees in judged if agrees] or [verdict for verdict, _ in judged]
        return sum(rewarded) / len(rewarded)

    assert len(result.candidates) == 3
    for candidate in result.candidates:
        assert candidate.score == pytest.approx(judge(candidate.text))
    assert result.best.score == max(candidate.score for candidate in result.candidates)


# -- r2_retrieval


def plain_r2(script, n, width, retrieve):
    """UCT search whose steps after the first child's see what was retrieved; (prompts asked, answers)."""
    ask, asked, ends = Asked(script), [], []
    kind = ask(TEMPLATE.format(question=PROMPT))
    found = retrieve(kind)
    start = WITH_TEMPLATES.format(retrieved=found, question=PROMPT) if found else PROMPT
    root = Plain()
    last = {root: PROMPT}
    for _ in range(n):
        node = root
        while not node.terminal:
            if not node.children:
                hint = retrieve(last[node])
                texts = []
                for i in range(width):
                    seen = start + node.text + (WITH_STEP.format(retrieved=hint) if hint and i else "")
                    asked.append(seen)
                    ask.counts[seen] += 1
                    step, reason, _ = script(seen, ask.counts[seen] - 1)
                    whole = node.text + step
                    if (whole, reason) not in texts:
                        texts.append((whole, reason))
                        child = Plain(whole, node, score(whole), terminal=reason == "eos")
                        node.children.append(child)
                        last[child] = step
            at = node
            node = max(at.children, key=lambda child: uct_bound(at, child))
        node.back_up(node.score)
        ends.append(node.text)
    return asked, ends


@pytest.mark.parametrize("seed", range(5))
def test_r2_retrieval_samples_in_view_of_what_it_retrieves_and_keeps_none_of_it(seed):
    def steps(prefix, k):
        draw = number(seed, prefix, k)
        if "kind of problem" in prefix:
            return f"kind {seed}", "eos"
        if prefix.count("\n") >= 6 or draw % 5 == 0:
            return f"= {draw % 10}", "eos"
        return f"s{draw % 9}\n", "stop_string"

    def script(prefix, k):
        return *steps(prefix, k), [-1.0] * len(words(steps(prefix, k)[0]))

    def retrieve(query):
        draw = number(seed, query) % 4
        return f"hint {draw}" if draw else ""

    decoder, calls = scripted_decoder(script), []
    options = {"num_simulations": 6, "num_children": 3, "retrieve": retrieve, "scorer": scorer(score, calls)}
    result = run_scripted(decoder, r2_retrieval, PROMPT, sampling=STEPS, **options)
    asked, ends = plain_r2(script, 6, 3, retrieve)
    assert Counter(prefixes(decoder)[1:]) == Counter(asked)
    assert set(ends) <= {candidate.text for candidate in result.candidates}
    assert any("hint" in prefix for prefix in asked)
    assert not any("hint" in text for texts in calls for text in texts)
    assert not any("hint" in candidate.text for candidate in result.candidates)


def test_r2_retrieval_finds_like_steps_elsewhere_in_its_tree():
    """With defaults the root is expanded unaided; from then on a node sees the likest step elsewhere."""
    steps = {PROMPT: ["add the numbers\n", "add the primes\n", "draw a line\n"]}

    def script(prefix, k):
        if prefix in steps:
            return steps[prefix][k], "stop_string"
        return "= 5", "eos"

    decoder = scripted_decoder(script)
    options = {
        "num_simulations": 1,
        "num_children": 3,
        "scorer": scorer(lambda text: float("numbers" in text)),
    }
    run_scripted(decoder, r2_retrieval, PROMPT, sampling=STEPS, **options)
    assert lexical_similarity("add the numbers\n", steps[PROMPT][1]) > 0
    shown = PROMPT + "add the numbers\n" + WITH_STEP.format(retrieved="add the primes")
    assert Counter(prefixes(decoder)[3:]) == {PROMPT + "add the numbers\n": 1, shown: 2}


# -- what reward models read


@pytest.mark.parametrize(
    ("strategy", "options"),
    [
        (ab_mcts, {"max_samples": 24}),
        (forest_of_thought, {"max_trees": 1, "max_rounds": 2, "correct_threshold": 0.0}),
        (forest_of_thought, {"examples": [("Q: 1", "= 1")]}),
        (r2_retrieval, {"num_simulations": 2, "retrieve": lambda query: "Sums are added up."}),
    ],
)
def test_answers_to_other_prompts_are_scored_as_answers_to_the_question(strategy, options):
    asked, prompts = set(), set()

    async def judge(branches):
        asked.update(branch.question for branch in branches)
        prompts.update(branch.full_text[: -len(branch.text)] for branch in branches)
        return [score(branch.text) for branch in branches]

    decoder = scripted_decoder(make_script(0), logprobs_of=lambda prefix, text: [-1.0] * len(words(text)))
    run_scripted(decoder, strategy, PROMPT, sampling=STEPS, scorer=judge, **options)
    assert asked == {PROMPT}
    assert prompts - {PROMPT}
