"""Step searches against plain transcriptions of their papers' algorithms, on a scripted model."""

import zlib
from collections import Counter

import numpy as np
import pytest
from scipy.stats import chisquare
from scripted import run_scripted, scorer, scripted_decoder
from tts_decode import Budget, SamplingParams, gather
from tts_decode.errors import UnsupportedByEngineError
from tts_decode.search import (
    SearchRun,
    Strategy,
    beam_search,
    best_of_n,
    compute_optimal,
    dvts,
    fetch,
    lookahead,
    swift,
)
from tts_decode.select import aggregate

SAMPLING = SamplingParams(stop=("\n",), max_tokens=500, seed=11)
SEEDS = range(6)


def number(*values):
    return zlib.crc32(repr(values).encode())


def random_script(seed, depth=5):
    """Steps of one word; after the first step one in four ends the answer, at the latest at `depth`."""

    def script(prefix, k):
        steps, drawn = prefix.count("\n"), number(seed, prefix, k)
        if steps >= depth - 1 or (steps > 0 and drawn % 4 == 0):
            return f"= {drawn % 97}", "eos"
        return f"{drawn % 9973}\n", "stop_string"

    return script


def random_score(seed):
    return lambda text: number("score", seed, text) / 2**32


class Plain:
    """The model of a transcription: the same script, with no engine."""

    def __init__(self, script):
        self.script, self.asked = script, Counter()

    def __call__(self, prefix):
        """(text, whether it ends the answer) of one more sample after `prefix`."""
        k = self.asked[prefix]
        self.asked[prefix] += 1
        text, reason = self.script(prefix, k)
        return text, reason == "eos"


def asked(decoder):
    return Counter(call.prefix for call in decoder.complete.calls)


def found(candidates):
    """Candidates as a sorted list of (text, score); the order in which they ended is the engine's."""
    return sorted((c.text, c.score) for c in candidates)


def search(strategy, script, **options):
    decoder = scripted_decoder(script)
    return decoder, run_scripted(decoder, strategy, "Q: ", sampling=SAMPLING, **options)


# -- DVTS


def plain_dvts(model, score, *, n, m, iterations, agg):
    """Subtrees one after the other in each iteration; a beam is (text, scores of its steps)."""
    answers, live = [], [("", [])] * (n // m)
    for iteration in range(iterations):
        following = []
        for text, scores in live:
            samples = []
            for _ in range(m):
                step, ended = model("Q: " + text)
                samples.append((text + step, [*scores, score(text + step)], ended))
            best = max(samples, key=lambda s: aggregate(s[1], agg))
            if best[2]:
                answers += [s for s in samples if s[2]]
            elif iteration == iterations - 1:
                answers += samples
            else:
                following.append(best[:2])
        live = following
    return [(text, aggregate(scores, agg), ended) for text, scores, ended in answers]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("n", "m", "iterations", "agg"), [(8, 4, 40, "last"), (9, 3, 3, "min"), (4, 1, 40, "prod")]
)
def test_dvts(seed, n, m, iterations, agg):
    model = Plain(random_script(seed))
    answers = plain_dvts(model, random_score(seed), n=n, m=m, iterations=iterations, agg=agg)
    decoder, result = search(
        dvts,
        random_script(seed),
        n=n,
        beam_width=m,
        scorer=scorer(random_score(seed)),
        max_steps=iterations,
        agg_strategy=agg,
    )
    assert found(result.candidates) == sorted((text, score) for text, score, _ in answers)
    best = max(answers, key=lambda a: (a[2], a[1]))
    assert (result.answer, result.best.score) == best[:2]
    assert asked(decoder) == model.asked


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


def plain_beams(model, score, *, n, m, k, iterations, agg):
    """Beam search of Snell et al., section 5.2, with k-step rollouts; finished beams leave their places."""
    answers, beams = [], [("", [])] * n
    for iteration in range(iterations):
        sampled = []
        for text, scores in beams:
            step, ended = model("Q: " + text)
            sampled.append((text + step, scores, ended))
        going = []
        for text, scores, ended in sampled:
            ahead, over = text, ended
            for _ in range(k):
                if not over:
                    step, over = model("Q: " + ahead)
                    ahead += step
            beam = (text, [*scores, score(ahead)])
            if ended or iteration == iterations - 1:
                answers.append((text, aggregate(beam[1], agg), ended))
            else:
                going.append(beam)
        if not going or sum(ended for *_, ended in answers) >= n:
            answers += [(text, aggregate(scores, agg), False) for text, scores in going]
            break
        kept = sorted(going, key=lambda beam: -aggregate(beam[1], agg))[: n // m]
        share, extra = divmod(n, len(kept))
        beams = []
        for beam in going:
            if beam in kept:
                beams += [beam] * (share + (kept.index(beam) < extra))
    return answers


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("n", "m", "k", "agg"), [(6, 3, 1, "last"), (8, 2, 2, "last"), (4, 2, 3, "mean"), (6, 2, 0, "last")]
)
def test_lookahead(seed, n, m, k, agg):
    model = Plain(random_script(seed))
    answers = plain_beams(model, random_score(seed), n=n, m=m, k=k, iterations=40, agg=agg)
    decoder, result = search(
        lookahead,
        random_script(seed),
        n=n,
        beam_width=m,
        k=k,
        scorer=scorer(random_score(seed)),
        agg_strategy=agg,
    )
    assert found(result.candidates) == sorted((text, score) for text, score, _ in answers)
    best = max(answers, key=lambda a: (a[2], a[1]))
    assert (result.answer, result.best.score) == best[:2]
    assert asked(decoder) == model.asked
    greedy = [call for call in decoder.complete.calls if call.request.temperature == 0]
    assert bool(greedy) == (k > 0)


def test_lookahead_gives_the_pages_of_rollouts_back():
    """Scored rollouts are gone before the next step is sampled; each step carries its rollout's score."""
    held = []

    async def watching(branches):
        held.append(branches[0].decoder.stats().branches)
        return [random_score(0)(branch.text) for branch in branches]

    _, result = search(lookahead, random_script(0, depth=4), n=4, beam_width=2, k=2, scorer=watching)
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
    _, ranked = search(beam_search, random_script(seed), **options)
    _, drawn = search(swift, random_script(seed), softmax_temperature=1e-9, **options)
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


def plain_fetch(model, score, *, beam, samples, iterations, classes):
    """Beam search over hyper-nodes as in the paper's code; states of one class say the same."""
    answers, ended = [], []  # ended: values of finished hyper-nodes
    nodes = [[("", None)]]
    for iteration in range(iterations):
        made = []
        for node in nodes:
            siblings = []
            for j in range(samples):
                text, _ = node[j % len(node)]
                step, over = model("Q: " + text)
                siblings.append((text + step, score(text + step), over, meaning(step, classes)))
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
        nodes = [[state[:2] for state in group] for _, group in best if group]
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

    model = Plain(random_script(seed))
    answers = plain_fetch(
        model, random_score(seed), beam=n // m, samples=m, iterations=iterations, classes=classes
    )
    decoder, result = search(
        fetch,
        random_script(seed),
        n=n,
        beam_width=m,
        scorer=scorer(random_score(seed)),
        max_steps=iterations,
        embed=embed,
    )
    assert found(result.candidates) == sorted(answer[:2] for answer in answers)
    best = max(answers, key=lambda a: (a[2], a[1]))
    assert (result.answer, result.best.score) == best[:2]
    assert asked(decoder) == model.asked


def test_fetch_without_an_embedding_says_what_a_text_engine_lacks():
    with pytest.raises(UnsupportedByEngineError, match="embedding of its own"):
        search(fetch, random_script(0), n=4, beam_width=2, scorer=scorer(random_score(0)))


# -- compute-optimal


def recording(name, seen):
    async def body(run, *, n, scorer):
        seen.append((name, n))
        return await best_of_n.body(run, n=n, scorer=scorer)

    return Strategy(body, name)


@pytest.mark.parametrize(
    ("scores", "expected"),
    [((0.9, 0.7), "easy"), ((0.8, 0.6), "easy"), ((0.9, 0.4), "medium"), ((0.5, 0.3), "hard")],
)
def test_compute_optimal_chooses_by_the_mean_score_of_the_probes(scores, expected):
    """A mean on an edge belongs to the easier bin."""
    seen = []

    def script(prefix, k):
        return f"= {k}", "eos"

    def score(text):
        k = int(text.split()[1])
        return scores[k] if k < 2 else 0.1 + k / 100

    _, result = search(
        compute_optimal,
        script,
        n=4,
        num_probes=2,
        scorer=scorer(score),
        edges=(0.7, 0.5),
        strategies=[recording(name, seen) for name in ("easy", "medium", "hard")],
    )
    assert seen == [(expected, 4)]
    assert [c.text for c in result.candidates] == [f"= {k}" for k in range(6)]
    assert result.answer == "= 0"


def test_compute_optimal_sizes_a_strategy_by_its_first_option():
    sizes = []

    async def body(run, *, max_samples, scorer):
        sizes.append(max_samples)
        return run.result()

    _, result = search(
        compute_optimal,
        random_script(0),
        n=6,
        num_probes=2,
        scorer=scorer(random_score(0)),
        edges=(),
        strategies=[Strategy(body, "all questions")],
    )
    assert sizes == [6]
    assert len(result.candidates) == 2


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("level", "chosen"), [(0.9, best_of_n), (0.5, beam_search), (0.1, dvts)])
def test_compute_optimal_goes_on_in_the_same_run(seed, level, chosen):
    """The default table's strategy runs as by itself, after the probes; probes do not fill its places."""

    def score(text):
        return level + 0.01 * random_score(seed)(text)

    async def by_hand(root):
        run = SearchRun(root)
        with run.of("by_hand", {}):
            probes = run.fork(root, 3)
            await gather(run.complete(branch) for branch in probes)
            await run.score(probes, scorer(score))
            for branch in probes:
                run.end(branch)
            return await chosen.body(run, n=8, scorer=scorer(score))

    _, expected = search(by_hand, random_script(seed))
    _, result = search(compute_optimal, random_script(seed), n=8, num_probes=3, scorer=scorer(score))
    assert found(result.candidates) == found(expected.candidates)
    assert result.best == expected.best
    assert sum(c.complete for c in result.candidates) >= 3 + (8 if chosen is not dvts else 2)


def test_compute_optimal_with_the_budget_gone_ends_with_its_probes():
    decoder = scripted_decoder(random_script(1))
    result = run_scripted(
        decoder,
        compute_optimal,
        "Q: ",
        sampling=SAMPLING,
        budget=Budget(max_tokens=3),
        num_probes=2,
        scorer=scorer(random_score(1)),
    )
    assert len(result.candidates) == 2
    assert result.stopped is not None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"edges": (0.5,)}, "strategies: got 5 entries for 1 edges"),
        ({"edges": (0.2, 0.4, 0.6, 0.8)}, "expected falling numbers"),
        ({"n": 6}, "beam_width: got 4 of beam_search, expected a divisor of n = 6"),
        ({"num_probes": 0}, "num_probes: got 0"),
    ],
)
def test_compute_optimal_names_bad_options_before_it_samples(options, message):
    decoder = scripted_decoder(random_script(0))
    with pytest.raises(ValueError, match=message):
        run_scripted(decoder, compute_optimal, "Q: ", scorer=scorer(random_score(0)), **options)
    assert not decoder.complete.calls


@pytest.mark.parametrize("strategy", [dvts, lookahead, swift, fetch])
def test_beam_width_divides_n(strategy):
    with pytest.raises(ValueError, match="beam_width: got 3, expected a divisor of n = 8"):
        search(strategy, random_script(0), n=8, beam_width=3, scorer=scorer(random_score(0)))


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
        search(strategy, random_script(0), scorer=scorer(random_score(0)), **options)
