"""Archon: inference-time techniques stacked as layers of operators on a list of responses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ...core.checks import at_least
from ...core.running import gather
from ...select import top_k
from ..answers import finish, spoken
from ..result import Candidate, SearchResult
from ..run import SearchRun
from ..strategy import strategy
from .parsing import listed, numbered, ranking
from .prompting import answer_to, reply_to

if TYPE_CHECKING:
    from ...core.interfaces import Decoder

OPERATORS = ("generate", "rank", "critique", "verify", "test", "fuse")
NUMBERED = ("generate", "rank", "test", "fuse")  # those that take a number
MOST_TESTS = 5

RANK = """{question}

Responses:

{responses}

Rank all of them from best to worst. Reply with their numbers alone, such as: 2 > 1 > 3"""

CRITIQUE = """{question}

A response:
{response}

List the strengths and the weaknesses of this response, briefly."""

VERIFY = """{question}

A response:
{response}

Check it step by step: is each step right, and is its answer?"""

VERDICT = """{question}

A response:
{response}

A check of it:
{check}

Is the response correct?"""

TESTS = """{question}

List at most {n} short statements, each of which a correct response must make true:
1. statement"""

PASSES = """{question}

A response:
{response}

Is this true of it: {test}"""

FUSE = """{question}

Responses to this from several sources:

{responses}

Write one better response: keep what is right in them, correct what is wrong, and leave nothing out."""


@dataclass
class State:
    """What is passed from layer to layer: responses, best first once ranked, and critiques."""

    responses: list[Candidate] = field(default_factory=list)
    critiques: dict[int, str] = field(default_factory=dict)  # by the response's node

    def text(self) -> str:
        """Returns all responses under their numbers, with their critiques."""
        parts = []
        for response in self.responses:
            critique = self.critiques.get(response.node)
            parts.append(spoken(response.text) + (f"\nCritique: {critique}" if critique else ""))
        return numbered(parts)

    @property
    def nodes(self) -> list[int]:
        return [response.node for response in self.responses]


@strategy("a stack of operators: generate, rank, critique, verify, test, fuse")
async def archon(
    run: SearchRun,
    *,
    n: int = 8,
    decoders: Sequence[Decoder] = (),
    layers: str | Sequence[str] = "generate rank:5 critique fuse",
) -> SearchResult:
    """Applies layers of operators, each to the previous responses; lacks the search over architectures.

    Saad-Falcon et al., "Archon: An Architecture Search Framework for Inference-Time Techniques", arXiv
    2409.15254, section 3. The default stack is the form of its general-purpose architectures: an ensemble,
    the top 5, a critic, a fuser.

    Args:
        n: responses that "generate" samples unless it has a number.
        decoders: further models: "generate" and "fuse" alternate between the root's own and these.
        layers: operators in order, in one text or one a string. Each is a name, or "name:number".
            "generate:k" samples the question k times; it comes first, and only there. "rank:k" ranks all
            responses in one prompt and keeps the best k, or all without k. "critique" writes strengths and
            weaknesses of each response, which later rank and fuse layers read. "verify" checks each in
            writing and keeps those whose verdict is more likely Yes than No, or all if there are none.
            "test:k" has the model write statements that must be true of a response, and keeps the k
            responses for which most are more likely Yes than No, or orders all without k. "fuse:k" makes k
            new responses from all; k defaults to 1.

    The first response of the last layer is the best. A ranking puts the readable numbers first and the others
    after them; unreadable tests leave the responses as they are. All prompts begin with the question and
    share its KV with the root.

    Departures: a critic and a verifier see one response at a time; verdicts are probabilities of Yes and need
    an engine that scores text; the search over architectures is the caller's, over `layers`.

    Raises:
        ValueError: `layers` names an unknown operator, a number below 1 or where none belongs, or does not
            begin with "generate".
    """
    at_least(1, n=n)
    stack = parse_layers(layers)
    question = run.question
    models = (None, *decoders)  # None: the root's own

    async def generate(state: State, k: int | None) -> None:
        takers = [models[i % len(models)] for i in range(n if k is None else k)]
        own = iter(run.fork(run.root, takers.count(None)))
        state.responses = await gather(
            finish(run, next(own)) if taker is None else answer_to(run, question, decoder=taker)
            for taker in takers
        )

    async def rank(state: State, k: int | None) -> None:
        reply = await reply_to(run, RANK.format(question=question, responses=state.text()), state.nodes)
        order = ranking(reply.text, len(state.responses))
        state.responses = [state.responses[i] for i in order][:k]

    async def critique(state: State, k: int | None) -> None:
        replies = await gather(
            reply_to(run, CRITIQUE.format(question=question, response=spoken(r.text)), [r.node])
            for r in state.responses
        )
        state.critiques |= {r.node: reply.text for r, reply in zip(state.responses, replies, strict=True)}

    async def verify(state: State, k: int | None) -> None:
        async def right(response: Candidate) -> bool:
            fields = {"question": question, "response": spoken(response.text)}
            check = await reply_to(run, VERIFY.format(**fields), [response.node])
            p = await run.p_yes(
                VERDICT.format(**fields, check=check.text), sources=[response.node, check.node]
            )
            return p > 0.5

        verdicts = await gather(right(response) for response in state.responses)
        kept = [response for response, ok in zip(state.responses, verdicts, strict=True) if ok]
        state.responses = kept or state.responses

    async def test(state: State, k: int | None) -> None:
        reply = await reply_to(run, TESTS.format(question=question, n=MOST_TESTS))
        tests = listed(reply.text, MOST_TESTS)

        async def passed(response: Candidate) -> float:
            verdicts = await gather(
                run.p_yes(
                    PASSES.format(question=question, response=spoken(response.text), test=text),
                    sources=[response.node, reply.node],
                )
                for text in tests
            )
            return float(sum(p > 0.5 for p in verdicts))

        counts = await gather(passed(response) for response in state.responses)
        if tests:
            order = top_k(counts, len(counts) if k is None else k)
            state.responses = [state.responses[i] for i in order]

    async def fuse(state: State, k: int | None) -> None:
        prompt = FUSE.format(question=question, responses=state.text())
        takers = [models[i % len(models)] for i in range(k or 1)]
        state.responses = await gather(answer_to(run, prompt, state.nodes, decoder=taker) for taker in takers)

    operators = dict(zip(OPERATORS, (generate, rank, critique, verify, test, fuse), strict=True))
    state = State()
    for name, k in stack:
        if run.over:
            break
        await operators[name](state, k)
    best = state.responses[0]
    return await run.result(best if best.complete else None)


def parse_layers(layers: str | Sequence[str]) -> list[tuple[str, int | None]]:
    """Returns names and numbers of a stack."""
    stack: list[tuple[str, int | None]] = []
    for layer in layers.split() if isinstance(layers, str) else layers:
        name, colon, number = layer.partition(":")
        fits = name in NUMBERED and number.isdecimal() and int(number) > 0
        if name not in OPERATORS or (colon and not fits):
            raise ValueError(
                f"layers: got {layer!r} in {layers!r}, expected one of {', '.join(OPERATORS)}, for "
                f"{', '.join(NUMBERED)} also with a number such as rank:5"
            )
        if (name == "generate") != (not stack):
            raise ValueError(
                f"layers: got {layers!r}, expected generate as the first layer, and nowhere else"
            )
        stack.append((name, int(number) if number else None))
    if not stack:
        raise ValueError(f"layers: got {layers!r}, expected at least generate")
    return stack
