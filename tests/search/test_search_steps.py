"""DVTS, look-ahead, SWIFT and FETCH against plain transcriptions of their papers' algorithms, on a script."""

from collections import Counter

import numpy as np
import pytest
from plain_scripts import PlainModel, number, random_score, step_script
from scipy.stats import chisquare
from scripted import run_scripted, scorer, scripted_decoder, words
from step_searches import FOLDS, SAMPLING, SEEDS, check_same, search
from tts_decode import SamplingParams
from tts_decode.errors import UnsupportedByEngineError
from tts_decode.search import beam_search, dvts, fetch, lookahead, swift

# -- DVTS


def plain_dvts(model, score, *, n, m, iterations, agg):
    """Each iteration runs subtrees in order; a beam is (text, scores of its steps)."""
    answers, live = [], [("", [])] * (n // m)
    for iteration in range(iterations):
        following = []
        for text, scores in live:
            samples = []
            for _ in range(m):
                step, ended = model.step("Q: " + text)
                samples.append((text + step, [*scores, score(text + step)], ended))
            best = max(samples, key=lambda s: FOLDS[agg](s[1]))
            if best[2]:
                answers += [s for s in samples if s[2]]
            elif iteration == iterations - 1:
                answers += samples
            else:
                following.append(best[:2])
        live = following
    return [(text, FOLDS[agg](scores), ended) for text, scores, ended in answers]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("n", "m", "iterations", "agg"), [(8, 4, 40, "last"), (9, 3, 3, "min"), (4, 1, 40, "prod")]
)
def test_dvts(seed, n, m, iterations, agg):
    model = PlainModel(step_script(seed))
    answers = plain_dvts(model, random_score(seed), n=n, m=m, iterations=iterations, agg=agg)
    options = {"n": n, "beam_width": m, "max_steps": iterations, "agg_strategy": agg}
    decoder, result = search(dvts, step_script(seed), scorer=scorer(random_score(seed)), **options)
    check_same(decoder, result, model, answers)


def test_dvts_subtrees_do_not_wait_for_each_other():
    """With one subtree's model 50 times slower, the other is at its end before the first step returns."""

    def script(prefix, k):
        if prefix == "Q: ":
            return f"{'fast' if k else 'slow'}\n", "stop_string"
        return ("x\n", "stop_string") if prefix.count("x") < 3 else ("= 1", "eos")

    decoder = scripted_decoder(script, latency=lambda prefix, k: 50 if prefix == "Q: " and k == 0 else 0)
    calls = []
    run_scripted(
        decoder, dvts, "Q: ", sampling=SAMPLING, n=2, beam_width=1, scorer=scorer(lambda t: 0.5, calls)
    )
    assert [texts[0].split()[0] for texts in calls] == ["fast"] * 5 + ["slow"] * 5


# -- beam search, with and without look-ahead


def plain_beams(model, score, *, n, m, k, iterations, agg, sort_completed=False):
    """Beam search of Snell et al., section 5.2, with k-step rollouts; finished beams leave their places, and
    of those n count, as in search-and-learn: the first, or the best if they are sorted."""
    answers, beams = [], [("", [])] * n
    for iteration in range(iterations):
        sampled = []
        for text, scores in beams:
            step, ended = model.step("Q: " + text)
            sampled.append((text + step, scores, ended))
        going = []
        for text, scores, ended in sampled:
            ahead, over = text, ended
            for _ in range(k):
                if not over:
                    step, over = model.step("Q: " + ahead)
                    ahead += step
            beam = (text, [*scores, score(ahead)])
            if ended or iteration == iterations - 1:
                answers.append((text, FOLDS[agg](beam[1]), ended))
            else:
                going.append(beam)
        if not going or (sum(ended for *_, ended in answers) >= n and not sort_completed):
            left = [(text, FOLDS[agg](scores), False) for text, scores in going]
            return truncated(answers, n, sort_completed) + left
        kept = sorted(going, key=lambda beam: -FOLDS[agg](beam[1]))[: n // m]
        share, extra = divmod(n, len(kept))
        beams = []
        for beam in going:
            if beam in kept:
                beams += [beam] * (share + (kept.index(beam) < extra))
    whole, cut = [a for a in answers if a[2]], [a for a in answers if not a[2]]
    return truncated(whole, n, sort_completed) + cut


def truncated(answers, n, sort_completed):
    """The list's first n, after a stable sort by falling score if it is to be sorted."""
    return (sorted(answers, key=lambda answer: -answer[1]) if sort_completed else answers)[:n]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("n", "m", "k", "agg"), [(6, 3, 1, "last"), (8, 2, 2, "last"), (4, 2, 3, "mean"), (6, 2, 0, "last")]
)
def test_lookahead(seed, n, m, k, agg):
    model = PlainModel(step_script(seed))
    answers = plain_beams(model, random_score(seed), n=n, m=m, k=k, iterations=40, agg=agg)
    options = {"n": n, "beam_width": m, "k": k, "agg_strategy": agg}
    decoder, result = search(lookahead, step_script(seed), scorer=scorer(random_score(seed)), **options)
    check_same(decoder, result, model, answers)
    greedy = [call for call in decoder.complete.calls if call.request.temperature == 0]
    assert bool(greedy) == (k > 0)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("sort_completed", [False, True])
@pytest.mark.parametrize(("n", "m", "agg"), [(6, 3, "last"), (8, 2, "min"), (4, 4, "mean")])
def test_beam_search_truncates_finished_beams_as_its_source_does(seed, n, m, agg, sort_completed):
    model = PlainModel(step_script(seed))
    plain = {"n": n, "m": m, "k": 0, "iterations": 40, "agg": agg, "sort_completed": sort_completed}
    answers = plain_beams(model, random_score(seed), **plain)
    options = {"n": n, "beam_width": m, "agg_strategy": agg, "sort_completed": sort_completed}
    decoder, result = search(beam_search, step_script(seed), scorer=scorer(random_score(seed)), **options)
    check_same(decoder, result, model, answers)
    assert sum(candidate.complete for candidate in result.candidates) <= n


def test_more_beams_than_n_may_finish_and_the_first_or_the_best_are_candidates():
    """Three of four finish at once, then four more: of n = 4 the last three are dropped, or the worst."""
    steps = {
        "Q: ": [("go\n", "stop_string"), *((f"= {i}", "eos") for i in range(3))],
        "Q: go\n": [(f"= {i}", "eos") for i in range(3, 7)],
    }

    def script(prefix, k):
        return steps[prefix][k]

    def value(text):
        return int(text[-1]) / 10 if "=" in text else 0.5

    def run_with(sort_completed):
        options = {"n": 4, "beam_width": 4, "sort_completed": sort_completed}
        _, result = search(beam_search, script, scorer=scorer(value), **options)
        return [candidate.text[-1] for candidate in result.candidates]

    assert run_with(False) == ["0", "1", "2", "3"]
    assert run_with(True) == ["3", "4", "5", "6"]


def test_lookahead_gives_the_pages_of_rollouts_back():
    """Scored rollouts are gone before the next step is sampled; each step carries its rollout's score."""
    held = []

    async def watching(branches):
        held.append(branches[0].decoder.stats().branches)
        return [random_score(0)(branch.text) for branch in branches]

    _, result = search(lookahead, step_script(0, depth=4), n=4, beam_width=2, k=2, scorer=watching)
    assert max(held) <= 1 + 4 + 4  # root, beams, a rollout of each
    scored = [node for node in result.tree if node.score is not None and node.status == "kept"]
    ends = {}
    for node in result.tree:
        ends.setdefault(node.parent, []).append(node)
    for node in scored:
        rollouts = [child for child in ends[node.id] if child.status in ("pruned", "kept")]
        assert rollouts

    def path_text(node):
        text = ""
        while node.parent >= 0:
            text = node.text + text
            node = result.tree[node.parent]
        return text

    below = {path_text(node): node for node in result.tree if node.parent >= 0}
    for node in scored:
        assert any(random_score(0)(text) == node.score for text in below if text.startswith(path_text(node)))


# -- SWIFT


@pytest.mark.parametrize("seed", SEEDS)
def test_swift_at_temperature_near_zero_is_beam_search(seed):
    options = {"n": 6, "beam_width": 3, "scorer": scorer(random_score(seed))}
    _, ranked = search(beam_search, step_script(seed), **options)
    _, drawn = search(swift, step_script(seed), softmax_temperature=1e-9, **options)
    assert (drawn.best, drawn.candidates, drawn.tree) == (ranked.best, ranked.candidates, ranked.tree)


def test_swift_draws_its_survivors_by_softmax_without_replacement():
    """Which two of four first steps live on, over 500 seeds, against the law of two successive draws."""
    scores, temperature = {"a": 0.50, "b": 0.52, "c": 0.55, "d": 0.58}, 0.05

    def script(prefix, k):
        return (f"{'abcd'[k]}\n", "stop_string") if prefix == "Q: " else ("= 1", "eos")

    decoder = scripted_decoder(script)

    async def survivors(seed):
        decoder.complete._asked.clear()
        root = await decoder.root("Q: ", SamplingParams(stop=("\n",), seed=seed))
        result = await swift(
            root,
            n=4,
            beam_width=2,
            scorer=scorer(lambda text: scores[text[0]]),
            softmax_temperature=temperature,
        )
        root.release()
        return frozenset(c.text[0] for c in result.candidates)

    async def all_of_them():
        return [await survivors(seed) for seed in range(500)]

    drawn = Counter(decoder.run(all_of_them()))
    weight = {name: np.exp(score / temperature) for name, score in scores.items()}
    total, law = sum(weight.values()), Counter()
    for first, w in weight.items():
        for second, v in weight.items():
            if second != first:
                law[frozenset((first, second))] += w / total * v / (total - w)
    assert set(drawn) <= set(law)
    observed, expected = zip(*((drawn[pair], 500 * p) for pair, p in law.items()), strict=True)
    assert min(expected) > 5
    assert chisquare(observed, expected).pvalue > 1e-4


# -- FETCH


def meaning(text, classes):
    return number(text.strip()) % classes


def plain_fetch(model, score, *, beam, samples, iterations, classes, longest=256):
    """Beam search over hyper-nodes as in the paper's code; states of one class say the same."""
    answers, ended = [], []  # ended: values of finished hyper-nodes
    nodes = [[("", None, None)]]
    for iteration in range(iterations):
        made = []
        for node in nodes:
            siblings = []
            for j in range(samples):
                text, before = node[j % len(node)][0], node[j % len(node)][2]
                step, over = model.step("Q: " + text)
                if len(words(step)) + over > longest or (not over and step == before):
                    continue  # `fix_value`
                siblings.append((text + step, score(text + step), over, meaning(step, classes), step))
            for finished in (True, False):
                groups = {}
                for state in siblings:
                    if state[2] == finished:
                        groups.setdefault(state[3], []).append(state)
                for group in groups.values():
                    made.append((finished, sorted(group, key=lambda s: -s[1])))
        answers += [state[:3] for finished, group in made for state in group if finished]
        pool = [(value, None) for value in ended]
        pool += [(group[0][1], None if finished else group) for finished, group in made]
        best = sorted(pool, key=lambda entry: -entry[0])[:beam]
        ended += [group[0][1] for finished, group in made if finished]
        nodes = [[(*state[:2], state[4]) for state in group] for _, group in best if group]
        if iteration == iterations - 1:
            answers += [state[:3] for finished, group in made for state in group if not finished and nodes]
        if not nodes:
            break
    return answers


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("n", "m", "iterations", "classes"), [(8, 4, 50, 2), (9, 3, 50, 3), (6, 6, 3, 4), (8, 2, 50, 10**6)]
)
def test_fetch(seed, n, m, iterations, classes):
    def embed(steps):
        vectors = np.zeros((len(steps), len(steps)))
        order = list(dict.fromkeys(meaning(step.text, classes) for step in steps))
        for row, step in enumerate(steps):
            vectors[row, order.index(meaning(step.text, classes))] = 1
        return vectors

    model = PlainModel(step_script(seed))
    answers = plain_fetch(
        model, random_score(seed), beam=n // m, samples=m, iterations=iterations, classes=classes
    )
    options = {"n": n, "beam_width": m, "max_steps": iterations, "embed": embed}
    decoder, result = search(fetch, step_script(seed), scorer=scorer(random_score(seed)), **options)
    check_same(decoder, result, model, answers)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("longest", [2, 256])
def test_fetch_drops_repeats_and_long_steps(seed, longest):
    def script(prefix, k):
        drawn, steps = number(seed, prefix, k), prefix.count("\n")
        if steps > 1 and drawn % 5 == 0:
            return "so " * (drawn % 3) + f"= {drawn % 97}", "eos"
        return "so " * (drawn % 4) + f"{drawn % 3}\n", "stop_string"

    def embed(steps):
        return np.eye(len(steps))

    model = PlainModel(script)
    answers = plain_fetch(
        model, random_score(seed), beam=2, samples=4, iterations=6, classes=10**9, longest=longest
    )
    options = {"n": 8, "beam_width": 4, "max_steps": 6, "embed": embed, "max_tokens_step": longest}
    decoder, result = search(fetch, script, scorer=scorer(random_score(seed)), **options)
    if answers:
        check_same(decoder, result, model, answers)


def test_fetch_keeps_what_was_dropped_where_there_is_nothing_else():
    options = {"n": 4, "beam_width": 2, "max_tokens_step": 1, "embed": lambda steps: np.eye(len(steps))}
    _, result = search(fetch, lambda prefix, k: ("too long\n", "stop_string"), scorer=scorer(len), **options)
    assert [candidate.text for candidate in result.candidates] == ["too long\n"] * 2


def test_fetch_without_an_embedding_says_what_a_text_engine_lacks():
    with pytest.raises(UnsupportedByEngineError, match="embedding of its own"):
        search(fetch, step_script(0), n=4, beam_width=2, scorer=scorer(random_score(0)))


# -- options


@pytest.mark.parametrize("strategy", [dvts, lookahead, swift, fetch])
def test_beam_width_divides_n(strategy):
    with pytest.raises(ValueError, match="beam_width: got 3, expected a divisor of n = 8"):
        search(strategy, step_script(0), n=8, beam_width=3, scorer=scorer(random_score(0)))


@pytest.mark.parametrize(
    ("strategy", "options", "message"),
    [
        (lookahead, {"k": -1}, "k: got -1, expected >= 0"),
        (swift, {"softmax_temperature": 0.0}, "softmax_temperature: got 0"),
        (fetch, {"cluster_threshold": -0.1}, "cluster_threshold: got -0.1"),
        (dvts, {"max_steps": 0}, "max_steps: got 0"),
    ],
)
def test_bad_options_are_named(strategy, options, message):
    with pytest.raises(ValueError, match=message):
        search(strategy, step_script(0), scorer=scorer(random_score(0)), **options)
