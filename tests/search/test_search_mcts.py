"""MCTS against plain transcriptions of its papers' algorithms, and how it expands, simulates and ends."""

import math

import pytest
from needed import needs
from plain_scripts import prompts
from scripted import run_scripted, scorer, scripted_decoder
from tree_scripts import PROMPT, STEPS, PlainNode, answers, expand, make_script, score, uct_bound
from tts_decode.search import mcts


def puct_bound(node, child):
    """openr, tree.py: `_ucb_score`, with the siblings' probabilities per token made to sum to 1."""
    c = math.log((node.visits + 19652 + 1) / 19652) + 1.25
    prior = math.exp(child.logprob) / sum(math.exp(sibling.logprob) for sibling in node.children)
    return child.value + c * math.sqrt(node.visits) / (child.visits + 1) * prior


def plain_mcts(script, n, width, bound):
    """Simulations from the root down to an answer; (prompts asked in order, answers by visit)."""
    root, asked, ends = PlainNode(), [], []
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
    options = {"num_simulations": 12, "num_children": 3, "selection": selection, "scorer": scorer(score)}
    result = run_scripted(decoder, mcts, PROMPT, sampling=STEPS, **options)
    root, asked, ends = plain_mcts(script, 12, 3, bound)
    assert prompts(decoder) == asked
    assert {end.text for end in ends} <= {candidate.text for candidate in result.candidates}
    assert result.best.score == max(score(candidate.text) for candidate in result.candidates)
    again = scripted_decoder(script)
    visits = run_scripted(again, mcts, PROMPT, sampling=STEPS, decide_by="visits", **options)
    while root.children:
        root = max(root.children, key=lambda child: (child.visits, child.value))
    assert visits.answer == root.text


@pytest.mark.parametrize("seed", range(3))
def test_mcts_expands_what_llm_reasoners_expands(seed):
    """RAP's search with the same UCT; the reward of a path is its end's."""
    needs("reasoners")
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
    assert prompts(decoder) == asked
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

    root, asked, rolled = PlainNode(), [], []
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
    assert prompts(decoder)[: len(asked)] == asked
    assert set(rolled) <= {candidate.text for candidate in result.candidates}
    assert all(candidate.complete for candidate in result.candidates)


def test_parallel_simulations_share_forwards_and_spread_out():
    """Four at once: every expansion but the root's serves several leaves, and no leaf is expanded twice."""
    decoder, calls = scripted_decoder(make_script(1)), []
    options = {"num_simulations": 8, "num_children": 3, "parallel": 4, "exploration": 2.0, "selection": "uct"}
    run_scripted(decoder, mcts, PROMPT, sampling=STEPS, scorer=scorer(score, calls), **options)
    assert max(len(texts) for texts in calls) > 3
    asked = prompts(decoder)
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
    assert prompts(decoder) == asked


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
