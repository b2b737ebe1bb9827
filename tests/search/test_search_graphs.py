"""Strategies on graphs of prompts: each against a plain transcription of its paper's algorithm.

The transcriptions share the strategies' prompts and the readers of replies, which have tests of their own,
and nothing else: they call the script with texts.
"""

import math
import random
import re
import zlib
from collections import Counter

import pytest
from scripted import run_scripted, scripted_decoder
from tiny_models import byte_tokenizer, tiny_model
from tts_decode import SamplingParams, TreeDecoder
from tts_decode.search import adaptive_graph, archon, aries, atom_of_thoughts, get_strategy
from tts_decode.search.answers import spoken
from tts_decode.search.graphs.parsing import choice, listed, numbered, ranking, with_needs
from tts_decode.select import ancestors, earlier_needs, extract_answer, longest_path

pytestmark = pytest.mark.usefixtures("one_thread")

QUESTION = "How old is Ann, who is twice as old as Bob?"
SEEDS = range(25)
LONG = SamplingParams(max_tokens=400)


def draw(*key):
    """A generator of random numbers that depends on the key alone."""
    return random.Random(zlib.crc32(repr(key).encode()))


def some_list(rng, most, needs=True):
    """A reply with 0..most list items."""
    count = rng.randint(0, most)
    lines = ["Let me see."]
    for i in range(1, count + 1):
        rests = f" (needs: {rng.randint(1, count)}, {rng.randint(1, count)})" if rng.random() < 0.6 else ""
        lines.append(f"{i}. part {rng.randint(0, 99)} -> {rng.randint(0, 9)}{rests if needs else ''}")
    return "\n".join(lines)


class Plain:
    """The script, called without an engine."""

    def __init__(self, script):
        self.script = script
        self.asked = Counter()

    def __call__(self, prompt):
        text, _ = self.script(prompt, self.asked[prompt])
        self.asked[prompt] += 1
        return text


def yes_log_prob(prompt, text):
    """Log-probabilities of " Yes" and "No" after a prompt, as one token."""
    p = draw("yes", prompt).random()
    return [math.log(p if text == "Yes" else 1 - p)]


def p_yes(prompt):
    return math.exp(yes_log_prob(prompt, "Yes")[0])


# -- atom of thoughts


def atoms(seed):
    def script(prompt, k):
        rng = draw(seed, prompt, k)
        if "Split this into" in prompt:
            return some_list(rng, 7) + f"\nThe answer is {rng.randint(1, 3)}", "eos"
        if "Write one self-contained" in prompt:
            return f"Simpler question {rng.randint(0, 999)}?" * (rng.random() < 0.9), "eos"
        if "Which of them" in prompt:
            return rng.choice(["1", "The best is 1.", "1", "2", "3", "none"]), "eos"
        return f"The answer is {rng.randint(1, 3)}", "eos"

    return script


def plain_atom_of_thoughts(model, question, max_depth):
    from tts_decode.search.graphs.atom_of_thoughts import CONTRACT, DECOMPOSE, JUDGE

    depth, limit, contractions = 0, None, 0
    direct = model(question)
    while True:
        decomposed = model(DECOMPOSE.format(question=question))
        parts, needs = with_needs(listed(decomposed, 10))
        needs = [[j for j in sorted(set(wanted)) if 0 <= j < i] for i, wanted in enumerate(needs)]
        if len(parts) < 2:
            return direct, contractions
        if limit is None:
            lengths = []
            for wanted in needs:
                lengths.append(1 + max([lengths[j] for j in wanted] or [0]))
            limit = min(max_depth, max(lengths))
        known = "\n".join(f"- {part}" for part, wanted in zip(parts, needs, strict=True) if not wanted)
        rest = "\n".join(
            f"- {part.split('->')[0].strip()}" for part, wanted in zip(parts, needs, strict=True) if wanted
        )
        new = model(CONTRACT.format(question=question, known=known, open=rest or "- the question itself"))
        if not new:
            return direct, contractions
        contracted = model(new)
        three = [contracted, decomposed, direct]
        verdict = re.search(r"\b[123]\b", model(JUDGE.format(question=question, answers=numbered(three))))
        if verdict:
            best = three[int(verdict[0]) - 1]
        else:
            counts = Counter(extract_answer(text) for text in three)
            best = next(t for t in three if counts[extract_answer(t)] == max(counts.values()))
        depth += 1
        contractions += 1
        if best is not contracted or depth == limit:
            return best, contractions
        question, direct = new, contracted


@pytest.mark.parametrize("max_depth", [1, 3])
def test_atom_of_thoughts_contracts_while_the_judge_likes_it(max_depth):
    seen = set()
    for seed in SEEDS:
        decoder = scripted_decoder(atoms(seed))
        result = run_scripted(decoder, atom_of_thoughts, QUESTION, sampling=LONG, max_rounds=max_depth)
        expected, contractions = plain_atom_of_thoughts(Plain(atoms(seed)), QUESTION, max_depth)
        assert result.answer == expected
        seen.add(contractions)
        history = [call.prefix for call in decoder.complete.calls if "Simpler question" in call.prefix]
        assert not any(QUESTION in prefix and "Split" in prefix for prefix in history)  # Markov
    assert seen == set(range(max_depth + 1))


def test_chains_of_atom_of_thoughts_vote():
    result = run_scripted(scripted_decoder(atoms(1)), atom_of_thoughts, QUESTION, sampling=LONG, n=5)
    assert sum(result.votes.values()) == 5
    assert extract_answer(result.answer) == next(iter(result.votes))


# -- adaptive graph


def graphs(seed):
    def script(prompt, k):
        rng = draw(seed, prompt, k)
        if "Which subproblems" in prompt:
            return some_list(rng, 4, needs=False), "eos"
        if "further subproblems" in prompt:
            return rng.choice(["DONE", some_list(rng, 4)]), "eos"
        return f"It is {rng.randint(0, 999)}.", "eos"

    return script


def plain_adaptive_graph(model, question, n, max_layers, max_depth, top=True):
    """AGoT(q, h, G): thoughts as [task, needs, answer]."""
    from tts_decode.search.graphs.adaptive_graph import COMPLEX, EVALUATE, FINAL, FIRST, NEXT

    def text(graph, which):
        return "\n".join(f"{i + 1}. {graph[i][0]} -> {graph[i][2]}" for i in which) or "nothing"

    def everything_below(graph, needs):
        found = set(needs)
        for i in sorted(found, reverse=True):
            found |= everything_below(graph, graph[i][1])
        return found

    direct = model(question) if top else None
    graph = []
    for layer in range(max_layers):
        whole = text(graph, range(len(graph)))
        reply = model((NEXT if layer else FIRST).format(question=question, n=n, graph=whole))
        tasks, wanted = with_needs(listed(reply, n))
        if len(tasks) < (1 if layer else 2):
            break
        new = []
        for task, named in zip(tasks, wanted, strict=True):
            needs = [i for i in named if 0 <= i < len(graph)] or list(range(len(graph)))
            known = text(graph, sorted(everything_below(graph, needs)))
            fields = {"question": question, "known": known, "task": task}
            answer = None
            if max_depth > 0 and p_yes(COMPLEX.format(**fields)) > 0.5:
                answer = plain_adaptive_graph(
                    model, f"{task}\n\nKnown:\n{known}", n, max_layers, max_depth - 1, top=False
                )
            new.append([task, needs, answer or model(EVALUATE.format(**fields))])
        graph += new
    if not graph:
        return direct
    return model(FINAL.format(question=question, graph=text(graph, range(len(graph)))))


@pytest.mark.parametrize(("max_layers", "max_depth"), [(1, 0), (2, 1), (3, 2)])
def test_adaptive_graph_builds_the_graph_of_the_paper(max_layers, max_depth):
    answered_directly = 0
    for seed in SEEDS:
        decoder = scripted_decoder(graphs(seed), logprobs_of=yes_log_prob)
        result = run_scripted(
            decoder, adaptive_graph, QUESTION, sampling=LONG, max_layers=max_layers, max_depth=max_depth
        )
        model = Plain(graphs(seed))
        assert result.answer == plain_adaptive_graph(model, QUESTION, 3, max_layers, max_depth)
        asked = Counter(call.prefix for call in decoder.complete.calls)
        assert asked == model.asked
        answered_directly += len(result.candidates) == 1
        sources = [node.sources for node in result.tree if node.sources]
        assert all(source < len(result.tree) for named in sources for source in named)
    assert 0 < answered_directly < len(SEEDS)


def test_a_threshold_is_a_probability():
    with pytest.raises(ValueError, match="threshold: got 2, expected a finite number, 0 <= threshold <= 1"):
        run_scripted(scripted_decoder(graphs(0)), adaptive_graph, QUESTION, threshold=2)


# -- ARIES


ACTIONS = ("decompose", "solve", "refine", "reduce", "aggregate")


def thoughts(seed):
    def script(prompt, k):
        rng = draw(seed, prompt, k)
        if "Reply with the best next action" in prompt:
            rng = draw(seed, prompt, k % 2)  # samples that agree
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
            found = listed(model(DECOMPOSE.format(question=text, n=max_parts)), max_parts)
            for part in found if len(found) > 1 else []:
                graph[max(graph) + 1] = [part, k, None]
        elif name == "solve":
            graph[k][2] = model(question if k == 1 else SOLVE.format(question=question, part=text))
        elif name == "refine":
            graph[k][2] = model(REFINE.format(question=text, answer=answer))
        elif name == "aggregate":
            lines = [f"- {graph[i][0]}: {graph[i][2]}" for i in parts(k) if graph[i][2] is not None]
            graph[k][2] = model(AGGREGATE.format(question=text, parts="\n".join(lines)))
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
            word, k = re.search(r"would (\w+) (\d+)", model(prompt)).groups()
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
        model = Plain(thoughts(seed))
        answer, actions = plain_aries(model, QUESTION, n, 12, 3)
        assert result.answer == answer
        assert Counter(call.prefix for call in decoder.complete.calls) == model.asked
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
        rng = draw(seed, prompt, k)
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
        told = numbered([r + (f"\nCritique: {c}" if c else "") for r, c in zip(state, critics, strict=True)])
        order = list(range(len(state)))
        if name == "generate":
            state = [model(question) for _ in range(k or n)]
            critics, order = [""] * len(state), list(range(len(state)))
        elif name == "rank":
            digits = re.findall(r"\d+", model(RANK.format(question=question, responses=told)))
            first = [int(d) - 1 for d in digits if 1 <= int(d) <= len(state)]
            order = sorted(order, key=lambda i: first.index(i) if i in first else len(first) + i)[:k]
        elif name == "critique":
            critics = [model(CRITIQUE.format(question=question, response=r)) for r in state]
        elif name == "verify":
            right = []
            for i, response in enumerate(state):
                check = model(VERIFY.format(question=question, response=response))
                if p_yes(VERDICT.format(question=question, response=response, check=check)) > 0.5:
                    right.append(i)
            order = right or order
        elif name == "test":
            tests = listed(model(TESTS.format(question=question, n=5)), 5)
            counts = [
                sum(p_yes(PASSES.format(question=question, response=r, test=t)) > 0.5 for t in tests)
                for r in state
            ]
            order = sorted(order, key=lambda i: -counts[i])[:k] if tests else order
        else:
            state = [model(FUSE.format(question=question, responses=told)) for _ in range(k or 1)]
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
        model = Plain(techniques(seed))
        assert result.answer == plain_archon(model, QUESTION, 5, layers)
        assert Counter(call.prefix for call in decoder.complete.calls) == model.asked


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


# -- on the tree


OPTIONS = {
    "atom_of_thoughts": {"n": 2, "max_rounds": 1},
    "adaptive_graph": {"threshold": 1.0},
    "aries": {"num_votes": 2, "max_actions": 2},
    "archon": {"n": 2, "layers": "generate critique verify test fuse"},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_prompts_share_the_pages_of_the_question(name):
    """A prompt that begins with the question computes none of its whole pages again."""
    model = tiny_model()
    model.config.max_position_embeddings = 4096
    decoder = TreeDecoder(
        model, byte_tokenizer(), kv_bytes=64 << 20, sampling=SamplingParams(max_tokens=24, seed=1)
    )
    question = QUESTION * 3

    async def search():
        root = await decoder.root(question)
        result = await get_strategy(name)(root, **OPTIONS[name])
        root.release()
        return result

    result = decoder.run(search())
    prompts = [node for node in result.tree[1:] if node.status == "prompt"]
    assert prompts
    assert all(node.text.startswith(question) for node in prompts)
    tokens = sum(len(node.tokens) for node in result.tree)
    yes_and_no = 5 * len(prompts)  # what of them is fed for a probability of Yes
    shared = len(question) // 16 * 16
    assert decoder.stats().forward_tokens <= tokens + yes_and_no - shared * len(prompts)
    assert decoder.stats().resident_bytes == 0


# -- what replies are read for


def test_lists_are_read_leniently():
    text = "Sure:\n1. one (needs: none)\n 2) two [Needs: 1]\n- three (needs 1, 2)\nno item\n4.5 is a number"
    items = listed(text, 5)
    assert items == ["one (needs: none)", "two [Needs: 1]", "three (needs 1, 2)"]
    assert with_needs(items) == (["one", "two", "three"], [[], [0], [0, 1]])
    assert listed(text, 1) == ["one (needs: none)"]
    assert listed("nothing here", 5) == []


def test_rankings_name_each_once():
    rng = random.Random(0)
    for _ in range(100):
        n = rng.randint(1, 6)
        named = [rng.randint(0, 8) for _ in range(rng.randint(0, 8))]
        order = ranking(" > ".join(map(str, named)), n)
        assert sorted(order) == list(range(n))
        valid = list(dict.fromkeys(k - 1 for k in named if 1 <= k <= n))
        assert order[: len(valid)] == valid
        assert order[len(valid) :] == sorted(order[len(valid) :])
    assert choice("Not 9, number 2 of 3", 3) == 1
    assert choice("none", 3) is None
    assert spoken("<think>1?</think>\n2 ") == "2"


def test_dependencies_form_a_dag_whatever_is_written():
    rng = random.Random(0)
    for _ in range(200):
        n = rng.randint(0, 7)
        needs = earlier_needs([[rng.randint(-2, 9) for _ in range(rng.randint(0, 4))] for _ in range(n)])
        assert all(0 <= j < i for i, wanted in enumerate(needs) for j in wanted)

        def chain(i, needs=needs):
            return 1 + max((chain(j) for j in needs[i]), default=0)

        assert longest_path(needs) == max((chain(i) for i in range(n)), default=0)
        if n:
            start = rng.randrange(n)
            found = ancestors(needs, [start])
            assert found == sorted(found)
            assert start in found
            assert all(j in found for i in found for j in needs[i])
            assert all(i == start or any(i in needs[k] for k in found) for i in found)
