"""Reward-guided tree search, MCTS-Judge and R2, and how answers to other prompts are scored."""

import math
from collections import Counter

import numpy as np
import pytest
from plain_scripts import PlainModel, number, prompts
from scripted import run_scripted, scorer, scripted_decoder, words
from tree_scripts import PROMPT, STEPS, WHOLE, PlainNode, expand, make_script, score, uct_bound
from tts_decode.search import (
    ReferenceLibrary,
    SolvedProblem,
    ab_mcts,
    forest_of_thought,
    mcts_judge,
    r2_retrieval,
    reward_guided_tree_search,
    with_templates,
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

    root, asked, found = PlainNode(), [], []

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
    assert Counter(prompts(decoder)) == Counter(asked)
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


def plain_r2(script, n, width, examples, steps_for, unaided=0):
    """UCT search whose steps see what was retrieved for the last one; (prompts asked, answers)."""
    ask, asked, ends = PlainModel(script), [], []
    kind = ask.text(TEMPLATE.format(question=PROMPT))
    found = examples(kind)
    start = WITH_TEMPLATES.format(retrieved=found, question=PROMPT) if found else PROMPT
    root = PlainNode()
    last = {root: PROMPT}
    for _ in range(n):
        node = root
        while not node.terminal:
            if not node.children:
                hint = steps_for(last[node])
                texts = []
                for i in range(width):
                    seen = (
                        start
                        + node.text
                        + (WITH_STEP.format(retrieved=hint) if hint and i >= unaided else "")
                    )
                    asked.append(seen)
                    step, reason, _ = ask(seen)
                    whole = node.text + step
                    if (whole, reason) not in texts:
                        texts.append((whole, reason))
                        child = PlainNode(whole, node, score(whole), terminal=reason == "eos")
                        node.children.append(child)
                        last[child] = step
            at = node
            node = max(at.children, key=lambda child: uct_bound(at, child))
        node.back_up(node.score)
        ends.append(node.text)
    return asked, ends


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("unaided", [0, 1])
def test_r2_retrieval_samples_in_view_of_what_it_retrieves_and_keeps_none_of_it(seed, unaided):
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
    options["num_unaided"] = unaided
    result = run_scripted(decoder, r2_retrieval, PROMPT, sampling=STEPS, **options)
    asked, ends = plain_r2(script, 6, 3, retrieve, retrieve, unaided)
    assert Counter(prompts(decoder)[1:]) == Counter(asked)
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
    assert Counter(prompts(decoder)[3:]) == {shown: 3}


PROBLEMS = [
    SolvedProblem("What is 2 + 3?", ("Add 2 and 3.\n", "The sum is 5.\n"), "a sum of numbers"),
    SolvedProblem("How many primes are below 10?", ("List them.\n", "Count them: 4.\n"), "count the primes"),
    SolvedProblem("What is 7 - 4?", ("Take 4 from 7.\n", "That is 3.\n")),
]


def letters(texts):
    """An embedding of any text: how often each letter stands in it."""
    return np.array([[text.lower().count(letter) + 1e-3 for letter in "abcdefghimnorstuw"] for text in texts])


def plain_cosine(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)


def likest(query, texts, count):
    (vector,), vectors = letters([query]), letters(texts)
    return sorted(range(len(texts)), key=lambda i: -plain_cosine(vector, vectors[i]))[:count]


@pytest.mark.parametrize("seed", range(4))
def test_r2_retrieval_shows_reference_problems_and_the_steps_that_followed(seed):
    """Both levels by hand: cosines of the templates, and of what stood before each reference step."""

    def script(prefix, k):
        draw = number(seed, prefix, k)
        if "kind of problem" in prefix:
            return ("to sum up", "primes to count", "anything")[seed % 3], "eos", [-1.0] * 3
        if prefix.count("\n") >= 14 or draw % 4 == 0:
            return f"= {draw % 10}", "eos", [-1.0] * 2
        return ("add them\n", "list some\n", "count on\n")[draw % 3], "stop_string", [-1.0] * 2

    def examples(kind):
        keys = [p.template or p.question for p in PROBLEMS]
        best = [PROBLEMS[i] for i in likest(kind, keys, 2)]
        return "\n\n".join(p.question + "\n" + "\n".join(p.steps) for p in best).strip()

    def steps_for(text):
        text = PROMPT if text == PROMPT else text
        before = [t for p in PROBLEMS for t in (p.question, p.steps[0])]
        after = [step.strip() for p in PROBLEMS for step in p.steps]
        return "\n".join(after[i] for i in likest(text, before, 2))

    decoder = scripted_decoder(
        lambda prefix, k: (*script(prefix, k)[:2], [-1.0] * len(words(script(prefix, k)[0])))
    )
    library = ReferenceLibrary(PROBLEMS, letters)
    options = {"num_simulations": 4, "num_children": 3, "library": library, "scorer": scorer(score)}
    result = run_scripted(decoder, r2_retrieval, PROMPT, sampling=STEPS, **options)
    asked, ends = plain_r2(script, 4, 3, examples, steps_for)
    assert Counter(prompts(decoder)[1:]) == Counter(asked)
    assert set(ends) <= {candidate.text for candidate in result.candidates}
    assert prompts(decoder)[1].startswith(examples(script(TEMPLATE.format(question=PROMPT), 0)[0]))


def test_r2_retrieval_goes_on_where_nothing_comes_in_view_of_the_text():
    """The model ends at once where it sees retrieved text: a child is sampled without it."""

    def script(prefix, k):
        if "What followed" in prefix:
            return "", "eos"
        return ("kind", "eos") if "kind of problem" in prefix else ("= 5", "eos")

    options = {"num_simulations": 2, "library": ReferenceLibrary(PROBLEMS, letters), "scorer": scorer(score)}
    result = run_scripted(scripted_decoder(script), r2_retrieval, PROMPT, sampling=STEPS, **options)
    assert [candidate.text for candidate in result.candidates] == ["= 5"]


def test_a_library_without_embeddings_compares_words_and_shows_nothing_unlike():
    library = ReferenceLibrary(PROBLEMS, num_examples=1, num_shown=3)
    assert library.problems_like("primes") == "How many primes are below 10?\nList them.\n\nCount them: 4.\n"
    assert library.steps_like("Add 2 and 3.").split("\n")[0] == "The sum is 5."
    assert library.problems_like("zzz") == library.steps_like("zzz") == ""


def test_templates_are_written_once_where_they_are_missing():
    decoder = scripted_decoder(lambda prefix, k: (f" kind of {prefix[:9]} ", "eos"))
    made = decoder.run(with_templates(decoder, PROBLEMS))
    assert [problem.template for problem in made[:2]] == [problem.template for problem in PROBLEMS[:2]]
    assert made[2].template == "kind of What is 7"
    assert len(prompts(decoder)) == 1
    assert decoder.stats().branches == 0


def test_libraries_that_cannot_serve_are_refused():
    with pytest.raises(ValueError, match="problems: got nothing"):
        ReferenceLibrary([])
    with pytest.raises(ValueError, match=r"problems\[0\].steps: got nothing"):
        ReferenceLibrary([SolvedProblem("Why?", ())])
    with pytest.raises(ValueError, match="num_shown: got 0"):
        ReferenceLibrary(PROBLEMS, num_shown=0)
    options = {"library": ReferenceLibrary(PROBLEMS), "retrieve": str, "scorer": scorer(score)}
    with pytest.raises(ValueError, match="retrieve: got a function beside a library"):
        run_scripted(scripted_decoder(make_script(0)), r2_retrieval, PROMPT, **options)


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
