"""Compute-optimal scaling: the probes choose setting and size, and the search continues in the same run."""

import json

import pytest
from plain_scripts import random_score, step_script
from scripted import run_scripted, scorer, scripted_decoder
from step_searches import SEEDS, found, search
from tts_decode import Budget, gather
from tts_decode.search import (
    Policy,
    PolicyFileError,
    SearchRun,
    Setting,
    Strategy,
    beam_search,
    best_of_n,
    compute_optimal,
    dvts,
    revisions,
)


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
        policy=Policy((0.7, 0.5), [Setting(recording(name, seen)) for name in ("easy", "medium", "hard")]),
    )
    assert seen == [(expected, 4)]
    assert [c.text for c in result.candidates] == [f"= {k}" for k in range(6)]
    assert result.answer == "= 0"


def test_compute_optimal_sizes_a_strategy_by_its_first_option():
    sizes = []

    async def body(run, *, max_samples, scorer):
        sizes.append(max_samples)
        return await run.result()

    _, result = search(
        compute_optimal,
        step_script(0),
        n=6,
        num_probes=2,
        scorer=scorer(random_score(0)),
        policy=Policy((), [Setting(Strategy(body, "all questions"))]),
    )
    assert sizes == [6]
    assert len(result.candidates) == 2


SEARCHES = Policy((0.7, 0.3), [Setting(best_of_n), Setting(beam_search, {"beam_width": 2}), Setting(dvts)])


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("level", "chosen", "options"),
    [(0.9, best_of_n, {}), (0.5, beam_search, {"beam_width": 2}), (0.1, dvts, {})],
)
def test_compute_optimal_goes_on_in_the_same_run(seed, level, chosen, options):
    """The setting's strategy runs as by itself, after the probes; probes do not fill its places."""

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
            return await chosen.body(run, n=8, scorer=scorer(score), **options)

    _, expected = search(by_hand, step_script(seed))
    asked = {"n": 8, "num_probes": 3, "scorer": scorer(score), "policy": SEARCHES}
    _, result = search(compute_optimal, step_script(seed), **asked)
    assert found(result.candidates) == found(expected.candidates)
    assert result.best == expected.best
    assert sum(c.complete for c in result.candidates) >= 3 + (8 if chosen is not dvts else 2)


def test_a_policy_is_read_from_its_file(tmp_path):
    path = tmp_path / "policy.json"
    Policy((0.5,), [Setting(best_of_n), Setting(revisions, {"num_sequential": 2})], {"a": 1}).save(path)
    assert json.loads(path.read_text()) == {
        "format": 1,
        "edges": [0.5],
        "settings": [
            {"strategy": "best_of_n", "options": {}},
            {"strategy": "revisions", "options": {"num_sequential": 2}},
        ],
        "about": {"a": 1},
    }
    low = {"n": 4, "scorer": scorer(lambda text: 0.2), "num_probes": 1}
    decoder, result = search(compute_optimal, step_script(3), policy=str(path), **low)
    assert len(result.candidates) == 5
    assert sum("Earlier attempts" in call.prefix for call in decoder.complete.calls) > 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "policy.json', expected a file of Policy.save"),
        ('{"format": 2}', "format: got 2, expected 1"),
        ('{"format": 1, "edges": [], "settings": [], "about": {}}', "settings: got 0 entries for 0 edges"),
        (
            '{"format": 1, "edges": [], "settings": [{"strategy": "none", "options": {}}], "about": {}}',
            "strategy: got 'none'",
        ),
    ],
)
def test_a_file_that_is_no_policy_is_named(tmp_path, text, message):
    path = tmp_path / "policy.json"
    path.write_text(text)
    with pytest.raises(PolicyFileError, match=message):
        Policy.load(path)
    with pytest.raises(PolicyFileError, match=r"missing\.json"):
        Policy.load(tmp_path / "missing.json")


@pytest.mark.parametrize(
    ("edges", "message"),
    [((0.5,), "settings: got 1 entries for 1 edges"), ((0.2, 0.4), "expected falling numbers")],
)
def test_a_policy_names_what_does_not_fit(edges, message):
    with pytest.raises(ValueError, match=message):
        Policy(edges, [Setting(best_of_n)] * (1 if len(edges) == 1 else 3))


def test_compute_optimal_with_the_budget_gone_ends_with_its_probes():
    options = {"budget": Budget(max_tokens=3), "num_probes": 2, "scorer": scorer(random_score(1))}
    _, result = search(compute_optimal, step_script(1), **options)
    assert len(result.candidates) == 2
    assert result.stopped is not None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"policy": Policy((), [Setting(revisions, {"num_sequential": 3})]), "n": 4},
            "num_sequential: got 3 of revisions, expected a divisor of n = 4",
        ),
        ({"n": 6}, "beam_width: got 4 of beam_search, expected a divisor of n = 6"),
        ({"num_probes": 0}, "num_probes: got 0"),
    ],
)
def test_compute_optimal_names_bad_options_before_it_samples(options, message):
    decoder = scripted_decoder(step_script(0))
    with pytest.raises(ValueError, match=message):
        run_scripted(decoder, compute_optimal, "Q: ", scorer=scorer(random_score(0)), **options)
    assert not decoder.complete.calls
