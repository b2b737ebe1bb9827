"""Atom of Thoughts and AGoT against plain transcriptions, and what prompts on graphs share.

The transcriptions share the strategies' prompts and the readers of replies, which have tests of their own,
and nothing else: they call the script with texts.
"""

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
from tiny_models import byte_tokenizer, tiny_model
from tts_decode import SamplingParams, TreeDecoder
from tts_decode.search import adaptive_graph, atom_of_thoughts, get_strategy

pytestmark = pytest.mark.usefixtures("one_thread")

# -- atom of thoughts


def atoms(seed):
    def script(prompt, k):
        rng = generator(seed, prompt, k)
        if "Split this into" in prompt:
            return some_list(rng, 7) + f"\nThe answer is {rng.randint(1, 3)}", "eos"
        if "Write one self-contained" in prompt:
            return f"Simpler question {rng.randint(0, 999)}?" * (rng.random() < 0.9), "eos"
        if "Which of them" in prompt:
            return rng.choice(["1", "The best is 1.", "1", "2", "3", "none"]), "eos"
        return f"The answer is {rng.randint(1, 3)}", "eos"

    return script


def plain_answer(text):
    """The number that a text of the script says last."""
    return re.findall(r"\d+", text)[-1]


def plain_atom_of_thoughts(model, question, max_depth):
    from tts_decode.search.graphs.atom_of_thoughts import CONTRACT, DECOMPOSE, JUDGE

    depth, limit, contractions = 0, None, 0
    direct = model.text(question)
    while True:
        decomposed = model.text(DECOMPOSE.format(question=question))
        parts, needs = plain_items(decomposed, 10)
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
        new = model.text(
            CONTRACT.format(question=question, known=known, open=rest or "- the question itself")
        )
        if not new:
            return direct, contractions
        contracted = model.text(new)
        three = [contracted, decomposed, direct]
        verdict = re.search(
            r"\b[123]\b", model.text(JUDGE.format(question=question, answers=plain_numbered(three)))
        )
        if verdict:
            best = three[int(verdict[0]) - 1]
        else:
            counts = Counter(plain_answer(text) for text in three)
            best = next(t for t in three if counts[plain_answer(t)] == max(counts.values()))
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
        expected, contractions = plain_atom_of_thoughts(PlainModel(atoms(seed)), QUESTION, max_depth)
        assert result.answer == expected
        seen.add(contractions)
        history = [call.prefix for call in decoder.complete.calls if "Simpler question" in call.prefix]
        assert not any(QUESTION in prefix and "Split" in prefix for prefix in history)  # Markov
    assert seen == set(range(max_depth + 1))


def test_chains_of_atom_of_thoughts_vote():
    result = run_scripted(scripted_decoder(atoms(1)), atom_of_thoughts, QUESTION, sampling=LONG, n=5)
    assert sum(result.votes.values()) == 5
    assert plain_answer(result.answer) == next(iter(result.votes))


# -- adaptive graph


def graphs(seed):
    def script(prompt, k):
        rng = generator(seed, prompt, k)
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

    direct = model.text(question) if top else None
    graph = []
    for layer in range(max_layers):
        whole = text(graph, range(len(graph)))
        reply = model.text((NEXT if layer else FIRST).format(question=question, n=n, graph=whole))
        tasks, wanted = plain_items(reply, n)
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
            new.append([task, needs, answer or model.text(EVALUATE.format(**fields))])
        graph += new
    if not graph:
        return direct
    return model.text(FINAL.format(question=question, graph=text(graph, range(len(graph)))))


@pytest.mark.parametrize(("max_layers", "max_depth"), [(1, 0), (2, 1), (3, 2)])
def test_adaptive_graph_builds_the_graph_of_the_paper(max_layers, max_depth):
    answered_directly = 0
    for seed in SEEDS:
        decoder = scripted_decoder(graphs(seed), logprobs_of=yes_log_prob)
        result = run_scripted(
            decoder, adaptive_graph, QUESTION, sampling=LONG, max_layers=max_layers, max_depth=max_depth
        )
        model = PlainModel(graphs(seed))
        assert result.answer == plain_adaptive_graph(model, QUESTION, 3, max_layers, max_depth)
        assert asked(decoder) == model.asked
        answered_directly += len(result.candidates) == 1
        sources = [node.sources for node in result.tree if node.sources]
        assert all(source < len(result.tree) for named in sources for source in named)
    assert 0 < answered_directly < len(SEEDS)


def test_a_threshold_is_a_probability():
    with pytest.raises(ValueError, match="threshold: got 2, expected a finite number, 0 <= threshold <= 1"):
        run_scripted(scripted_decoder(graphs(0)), adaptive_graph, QUESTION, threshold=2)


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
