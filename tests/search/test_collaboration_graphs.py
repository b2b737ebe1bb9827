"""Collaboration graphs: runs against a plain transcription, on scripts and on a small model."""

import asyncio
from dataclasses import dataclass, replace

import pytest
from plain_scripts import number
from scripted import counted, scripted_decoder, words
from tiny_models import byte_tokenizer, tiny_model
from tiny_searches import SAMPLING, search_decoder
from tts_decode import Budget, TreeDecoder
from tts_decode.search import (
    GRAPH_ROLES,
    CollaborationGraph,
    GraphNode,
    GraphTrial,
    Journal,
    SearchRun,
    measure_graph,
    run_graph,
)

MODELS = ("small", "large")
PARALLEL = CollaborationGraph((GraphNode("small"), GraphNode("small"), GraphNode("large", "fuser", (0, 1))))
SEQUENTIAL = CollaborationGraph(
    (GraphNode("large"), GraphNode("small", "assistant", (0,)), GraphNode("small", "assistant", (1,)))
)
HYBRID = CollaborationGraph(
    (
        GraphNode("small"),
        GraphNode("large"),
        None,
        GraphNode("large", "assistant", (0,)),
        GraphNode("small", "fuser", (0, 1, 3)),
    )
)
ONE = CollaborationGraph((GraphNode("small"),))


@dataclass(frozen=True)
class Question:
    prompt: str
    right: str | None

    @property
    def verify(self):
        return None if self.right is None else lambda text: float(text == self.right)


def script_of(model):
    def script(prefix, k):
        drawn = number(model, prefix, k)
        return f"{model} {'so ' * (drawn % 4)}{drawn % 1000}", "eos"

    return script


def two_decoders():
    return {model: scripted_decoder(script_of(model)) for model in MODELS}


def plain(graph, question, asks):
    """Node by node: answers, and the number of their tokens with the end."""
    answers = {}
    for place, node in enumerate(graph.nodes):
        if node is not None:
            prompt = question
            if node.inputs:
                shown = "\n\n".join(f"[{k}] {answers[i]}" for k, i in enumerate(node.inputs, 1))
                prompt = GRAPH_ROLES[node.role].format(question=question, answers=shown)
            answers[place] = asks[node.model](prompt)[0]
    return answers, {place: len(words(text)) + 1 for place, text in answers.items()}


@pytest.mark.parametrize("graph", [PARALLEL, SEQUENTIAL, HYBRID, ONE], ids=str)
def test_each_node_is_shown_the_answers_that_it_reads(graph):
    asks = {model: counted(script_of(model)) for model in MODELS}
    prompts = ["Q one", "Q two"]
    found = [plain(graph, prompt, asks) for prompt in prompts]
    last = len(graph.nodes) - 1
    questions = [Question(prompts[0], found[0][0][last]), Question(prompts[1], "another")]
    decoders, prices, times = two_decoders(), {"small": 1.0, "large": 8.0}, {"small": 0.5, "large": 3.0}
    trial = asyncio.run(measure_graph(decoders, graph, questions, prices=prices, token_times=times))

    tokens = tuple(sum(counts.get(place, 0) for _, counts in found) / 2 for place in range(last + 1))
    cost = sum(prices[n.model] * tokens[p] for p, n in enumerate(graph.nodes) if n is not None)

    def ready(counts, place):
        node = graph.nodes[place]
        before = max((ready(counts, i) for i in node.inputs), default=0)
        return before + times[node.model] * counts[place]

    latency = sum(ready(counts, last) for _, counts in found) / 2
    assert trial == GraphTrial(graph, 0.5, tokens, 0.0, pytest.approx(cost), pytest.approx(latency), None)
    assert all(decoder.stats().branches == 0 for decoder in decoders.values())


def test_a_node_waits_for_nothing_but_what_it_reads():
    """The second node is slow; the third, which reads the first alone, is asked before it has answered."""
    graph = CollaborationGraph(
        (
            GraphNode("small"),
            GraphNode("large"),
            GraphNode("small", "assistant", (0,)),
            GraphNode("small", "fuser", (1, 2)),
        )
    )
    slow = scripted_decoder(script_of("large"), latency=lambda prefix, k: 200)
    answered = []  # by the slow model, when the other one is asked

    def script(prefix, k):
        answered.append(len(slow.complete.calls))
        return script_of("small")(prefix, k)

    decoders = {"small": scripted_decoder(script), "large": slow}
    asyncio.run(measure_graph(decoders, graph, [Question("Q", "a")]))
    assert answered == [0, 0, 1]


def test_a_run_is_a_search_with_tree_budget_and_journal(tmp_path):
    decoders = two_decoders()
    answers, counts = plain(HYBRID, "Q", {model: counted(script_of(model)) for model in MODELS})

    async def run(decoders, budget=None, journal=None, resume=False):
        root = await decoders["small"].root("Q", budget=budget)
        try:
            search = SearchRun(root, journal=journal and Journal(journal, resume=resume))
            return await run_graph(search, graph=HYBRID, decoders=decoders)
        finally:
            root.release()

    result = asyncio.run(run(decoders))
    assert [candidate.text for candidate in result.candidates] == list(answers.values())
    assert result.best.text == answers[4]
    assert result.stopped is None
    assert result.stats.generated_tokens == sum(counts.values())
    sources = [node.sources for node in result.tree if node.sources]
    by_place = {place: c.node for place, c in zip(answers, result.candidates, strict=True)}
    assert sorted(sources) == sorted([(by_place[0],), tuple(by_place[i] for i in (0, 1, 3))])

    cut = asyncio.run(run(two_decoders(), Budget(max_tokens=counts[0] + counts[1])))
    assert len(cut.candidates) == 2
    assert "max_tokens" in cut.stopped

    asyncio.run(run(two_decoders(), journal=tmp_path / "journal"))
    again = two_decoders()
    repeated = asyncio.run(run(again, journal=tmp_path / "journal", resume=True))
    assert repeated.answer == result.answer
    assert not any(decoder.complete.calls for decoder in again.values())


def test_a_question_is_computed_once_in_each_model(one_thread):
    """Nodes fork the question's KV, and prompts that begin with the question share its whole pages."""
    decoders = {"small": search_decoder(), "large": search_decoder()}
    nodes = [*[GraphNode("small")] * 3, *[GraphNode("large")] * 3]
    graph = CollaborationGraph((*nodes, GraphNode("large", "fuser", (0, 1, 2, 3, 4, 5))))
    text = "What is 3 + 4? Think about it. " * 4

    async def run():
        root = await decoders["small"].root(text)
        try:
            return await run_graph(root, graph=graph, decoders=decoders)
        finally:
            root.release()

    result = asyncio.run(run())
    small, large = (decoder.stats() for decoder in decoders.values())
    question, page, most = len(text), small.page_size, SAMPLING.max_tokens
    (fused,) = (len(node.tokens) for node in result.tree if node.sources)
    assert question <= small.forward_tokens <= question + 3 * most
    assert large.forward_tokens <= question + 3 * most + fused - question // page * page + most
    assert large.forward_tokens < 2 * question + fused
    assert all(d.stats().resident_bytes == d.stats().branches == 0 for d in decoders.values())

    trial = asyncio.run(measure_graph(decoders, graph, [Question(text, "7")]))
    assert asyncio.run(measure_graph(decoders, graph, [Question(text, "7")])) == replace(
        trial, eflops=pytest.approx(trial.eflops)
    )
    assert 6 < sum(trial.tokens) == trial.cost <= most * graph.price()
    assert trial.eflops > 0


def test_a_prompt_that_does_not_fit_leaves_the_answers_so_far(one_thread):
    """They are paid for, and the trial says why the graph ended."""
    small = TreeDecoder(tiny_model(), byte_tokenizer(), kv_bytes=64 << 20, sampling=SAMPLING)
    decoders = {"small": small, "large": search_decoder()}
    graph = CollaborationGraph((GraphNode("small"), GraphNode("large"), GraphNode("small", "fuser", (0, 1))))
    trial = asyncio.run(measure_graph(decoders, graph, [Question("x" * 450, "never")]))
    assert small.max_positions == 512
    assert 0 < trial.tokens[0] <= SAMPLING.max_tokens >= trial.tokens[1] > 0 == trial.tokens[2]
    assert trial.latency == max(trial.tokens)
    assert "512" in trial.stopped
    assert all(decoder.stats().branches == 0 for decoder in decoders.values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"decoders": {"small": None}}, r"decoders: got \['small'\], expected one for the model 'large'"),
        ({"roles": {"assistant": ""}}, r"roles: got \['assistant'\], expected a prompt for the role 'fuser'"),
        ({"roles": {"fuser": "{question} {text}"}}, r"roles\['fuser'\]: got the field \{text\}"),
        ({"questions": []}, "questions: got none, or one without a verifier"),
        ({"questions": [Question("a", None)]}, "questions: got none, or one without a verifier"),
        ({"prices": {"small": 1}}, r"prices: got \['small'\], expected one for the model 'large'"),
        ({"prices": {"small": -1, "large": 1}}, r"prices\['small'\]: got -1"),
        ({"token_times": {}}, r"token_times: got \[\], expected one for the model 'large'"),
    ],
)
def test_what_does_not_fit_is_named_before_anything_is_sampled(change, message):
    decoders = two_decoders()
    given = {"decoders": decoders, "graph": PARALLEL, "questions": [Question("a", "b")]} | change
    with pytest.raises(ValueError, match=message):
        asyncio.run(measure_graph(**given))
    assert not any(decoder.complete.calls for decoder in decoders.values())
