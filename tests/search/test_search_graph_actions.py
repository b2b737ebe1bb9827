"""ARIES and Archon, which apply operators one after another, against plain transcriptions."""

import re
from collections import Counter

import pytest
from graph_scripts import (
    LONG,
    QUESTION,
    SEEDS,
    generator,
    p_yes,
    plain_items,
    plain_numbered,
    some_list,
    yes_log_prob,
)
from plain_scripts import PlainModel, asked
from scripted import run_scripted, scripted_decoder
from tts_decode.search import archon, aries

pytestmark = pytest.mark.usefixtures("one_thread")

# -- ARIES


ACTIONS = ("decompose", "solve", "refine", "reduce", "aggregate")


def thoughts(seed):
    def script(prompt, k):
        rng = generator(seed, prompt, k)
        if "Reply with the best next action" in prompt:
            rng = generator(seed, prompt, k % 2)  # samples that agree
            action = rng.choice([*ACTIONS, *ACTIONS, "stop", "dance"])
            if "Actions taken: none" in prompt and rng.random() < 0.7:
                return "I would decompose 1.", "eos"
            return f"I would {action} {rng.randint(1, 4)}.", "eos"
        if "List at most" in prompt:
            return some_list(rng, 4, needs=False), "eos"
        return f"It is {rng.randint(0, 999)}.", "eos"

    return script


def plain_aries(model, question, n, max_steps, max_parts):
    """The graph as {number: [text, parent, answer]}; returns the whole's answer and the actions taken."""
    from tts_decode.search.graphs.aries import AGGREGATE, DECOMPOSE, POLICY, REFINE, SOLVE

    graph, taken = {1: [question, 0, None]}, []

    def parts(k):
        return [i for i in graph if graph[i][1] == k]

    def lawful(name, k):
        if k not in graph:
            return False
        answered = graph[k][2] is not None
        if name == "reduce":
            return k != 1
        if name == "aggregate":
            return any(graph[i][2] is not None for i in parts(k))
        if name == "decompose":
            return not answered and not parts(k)
        return answered == (name == "refine")

    def apply(name, k):
        text, _, answer = graph[k]
        if name == "decompose":
            found, _ = plain_items(model.text(DECOMPOSE.format(question=text, n=max_parts)), max_parts)
            for part in found if len(found) > 1 else []:
                graph[max(graph) + 1] = [part, k, None]
        elif name == "solve":
            graph[k][2] = model.text(question if k == 1 else SOLVE.format(question=question, part=text))
        elif name == "refine":
            graph[k][2] = model.text(REFINE.format(question=text, answer=answer))
        elif name == "aggregate":
            lines = [f"- {graph[i][0]}: {graph[i][2]}" for i in parts(k) if graph[i][2] is not None]
            graph[k][2] = model.text(AGGREGATE.format(question=text, parts="\n".join(lines)))
        else:
            gone = [k]
            for i in gone:
                gone += parts(i)
            for i in gone:
                del graph[i]

    for _ in range(max_steps):
        lines = []
        for k, (text, parent, answer) in graph.items():
            part = f" (part of {parent})" if parent else ""
            lines.append(f"{k}.{part} {text} -> " + ("unsolved" if answer is None else f"solved: {answer}"))
        prompt = POLICY.format(question=question, graph="\n".join(lines), history=", ".join(taken) or "none")
        votes = Counter()
        for _ in range(n):
            word, k = re.search(r"would (\w+) (\d+)", model.text(prompt)).groups()
            if word == "stop" and graph[1][2] is not None:
                votes["stop", 1] += 1
            elif word in ACTIONS and lawful(word, int(k)):
                votes[word, int(k)] += 1
        if votes:
            name, k = max(votes, key=votes.__getitem__)  # the first of equals
        else:
            ready = [
                i for i in graph if parts(i) and graph[i][2] is None and all(graph[j][2] for j in parts(i))
            ]
            leaves = [i for i in graph if graph[i][2] is None and not parts(i)]
            name, k = ("aggregate", ready[-1]) if ready else ("solve", leaves[0]) if leaves else ("stop", 1)
        if name == "stop":
            break
        taken.append(f"{name} {k}")
        apply(name, k)
    if graph[1][2] is None:
        apply("aggregate" if lawful("aggregate", 1) else "solve", 1)
    return graph[1][2], taken


@pytest.mark.parametrize("n", [1, 4])
def test_aries_takes_the_actions_that_its_policies_vote_for(n):
    taken = Counter()
    for seed in SEEDS:
        decoder = scripted_decoder(thoughts(seed))
        result = run_scripted(
            decoder, aries, QUESTION, sampling=LONG, num_votes=n, max_actions=12, max_parts=3
        )
        model = PlainModel(thoughts(seed))
        answer, actions = plain_aries(model, QUESTION, n, 12, 3)
        assert result.answer == answer
        assert asked(decoder) == model.asked
        taken.update(action.split()[0] for action in actions)
    assert set(taken) == set(ACTIONS)


def test_aries_with_a_silent_policy_solves_the_whole():
    def script(prompt, k):
        return ("Hmm.", "eos") if "Possible actions" in prompt else ("Ann is 40.", "eos")

    decoder = scripted_decoder(script)
    result = run_scripted(decoder, aries, QUESTION, num_votes=3)
    assert result.answer == "Ann is 40."
    assert len(decoder.complete.calls) == 3 + 1 + 3  # a vote, the solution, a vote to stop


# -- Archon


def techniques(seed):
    def script(prompt, k):
        rng = generator(seed, prompt, k)
        if "Rank all of them" in prompt:
            return " > ".join(str(rng.randint(0, 6)) for _ in range(4)), "eos"
        if "short statements" in prompt:
            return some_list(rng, 4, needs=False), "eos"
        return f"words {rng.randint(0, 9999)}", "eos"

    return script


def plain_archon(model, question, n, layers):
    from tts_decode.search.graphs.archon import CRITIQUE, FUSE, PASSES, RANK, TESTS, VERDICT, VERIFY

    state, critics = [], []  # responses, and their critiques beside them
    for layer in layers.split():
        name, _, number = layer.partition(":")
        k = int(number) if number else None
        told = plain_numbered(
            [r + (f"\nCritique: {c}" if c else "") for r, c in zip(state, critics, strict=True)]
        )
        order = list(range(len(state)))
        if name == "generate":
            state = [model.text(question) for _ in range(k or n)]
            critics, order = [""] * len(state), list(range(len(state)))
        elif name == "rank":
            digits = re.findall(r"\d+", model.text(RANK.format(question=question, responses=told)))
            first = [int(d) - 1 for d in digits if 1 <= int(d) <= len(state)]
            order = sorted(order, key=lambda i: first.index(i) if i in first else len(first) + i)[:k]
        elif name == "critique":
            critics = [model.text(CRITIQUE.format(question=question, response=r)) for r in state]
        elif name == "verify":
            right = []
            for i, response in enumerate(state):
                check = model.text(VERIFY.format(question=question, response=response))
                if p_yes(VERDICT.format(question=question, response=response, check=check)) > 0.5:
                    right.append(i)
            order = right or order
        elif name == "test":
            tests, _ = plain_items(model.text(TESTS.format(question=question, n=5)), 5)
            counts = [
                sum(p_yes(PASSES.format(question=question, response=r, test=t)) > 0.5 for t in tests)
                for r in state
            ]
            order = sorted(order, key=lambda i: -counts[i])[:k] if tests else order
        else:
            state = [model.text(FUSE.format(question=question, responses=told)) for _ in range(k or 1)]
            critics, order = [""] * len(state), list(range(len(state)))
        state, critics = [state[i] for i in order], [critics[i] for i in order]
    return state[0]


@pytest.mark.parametrize(
    "layers",
    [
        "generate rank:5 critique fuse",
        "generate:6 critique rank:3 verify fuse:3 test:1",
        "generate test:3 verify",
        "generate:4 verify rank critique fuse:2 rank:1",
    ],
)
def test_archon_applies_its_operators_in_order(layers):
    for seed in SEEDS:
        decoder = scripted_decoder(techniques(seed), logprobs_of=yes_log_prob)
        result = run_scripted(decoder, archon, QUESTION, sampling=LONG, n=5, layers=layers)
        model = PlainModel(techniques(seed))
        assert result.answer == plain_archon(model, QUESTION, 5, layers)
        assert asked(decoder) == model.asked


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (
            "generate vote",
            "layers: got 'vote' in .*, expected one of generate, rank, critique, verify, test, fuse",
        ),
        ("generate rank:0", "layers: got 'rank:0'"),
        ("generate verify:2", "layers: got 'verify:2'"),
        ("rank", "expected generate as the first layer"),
        (["generate", "fuse", "generate"], "expected generate as the first layer, and nowhere else"),
        ("", "expected at least generate"),
    ],
)
def test_archon_names_what_is_wrong_with_its_layers(layers, message):
    with pytest.raises(ValueError, match=message):
        run_scripted(scripted_decoder(techniques(0)), archon, QUESTION, layers=layers)


def test_archon_shares_out_samples_between_models():
    first, second = scripted_decoder(techniques(1)), scripted_decoder(techniques(2))
    result = run_scripted(first, archon, QUESTION, n=5, layers="generate", decoders=[second])
    assert [len(decoder.complete.calls) for decoder in (first, second)] == [3, 2]
    assert len(result.candidates) == 5
    assert second.stats().branches == 0
