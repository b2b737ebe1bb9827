"""Atom of Thoughts: repeatedly simplifies a question to one with the same answer, and drops its history."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ...core.checks import at_least
from ...core.running import gather
from ...select import earlier_needs, extract_answer, longest_path, vote
from ..answers import Extract, answers_of, concluded, finish, spoken
from ..result import Candidate, SearchResult
from ..run import SearchRun
from ..strategy import strategy
from .parsing import choice, listed, numbered, with_needs
from .prompting import answer_to, reply_to

if TYPE_CHECKING:
    from ...core.interfaces import Branch

MOST_PARTS = 10  # sub-questions read from one decomposition

DECOMPOSE = """{question}

Split this into sub-questions. Answer each on a line of its own, and name those that it rests on:
1. sub-question -> answer
2. sub-question -> answer (needs: 1)
Then give the answer to the whole as: The answer is ..."""

CONTRACT = """{question}

Known by now:
{known}

Still open:
{open}

Write one self-contained question with the same answer as the question above, simpler because it states what \
is known as given. Write the question alone."""

JUDGE = """{question}

Proposed answers:

{answers}

Which of them is most likely right? Reply with its number alone."""


@strategy("a question is contracted, step by step, to simpler ones with the same answer")
async def atom_of_thoughts(
    run: SearchRun,
    *,
    n: int = 1,
    max_rounds: int = 3,
    extract: Extract = extract_answer,
) -> SearchResult:
    """Contracts the question to a simpler one as long as a judge prefers the simpler one's answer.

    Teng et al., "Atom of Thoughts for Markov LLM Test-Time Scaling", arXiv 2502.12018, section 3 (defaults of
    its code). Each state is a question. The model answers it directly and by decomposition into a DAG of
    sub-questions. Sub-questions that depend on nothing become given facts; the rest is contracted to a new
    question, which the model answers too. A judge picks one of the three answers. While it picks the new
    question's, that question is the next state, and everything before it is dropped.

    Args:
        n: chains of states, side by side; their answers vote.
        max_rounds: maximum number of contractions, at least 1; also limited by the longest chain of needs in
            the first DAG.
        extract: the answer in a text, or None to abstain.

    If a decomposition has fewer than two readable parts, or a contraction is empty, the question is atomic
    and its direct answer stands. If the judge names no readable number, the three answers vote; ties go to
    the contraction, then to the decomposition. Prompts of the first state share the KV of its question with
    the root; later states share nothing with it.

    Departures: decomposition and its dependencies come from one prompt, not two with retries; the judge names
    an answer instead of writing one that is then compared.
    """
    at_least(1, n=n, max_rounds=max_rounds)

    async def chain(branch: Branch) -> Candidate:
        question, limit = run.question, max_rounds
        direct: Candidate
        direct, whole = await gather(finish(run, branch), answer_to(run, DECOMPOSE.format(question=question)))
        for depth in range(max_rounds):
            parts, needs = with_needs(listed(spoken(whole.text), MOST_PARTS))
            needs = earlier_needs(needs)
            if depth == 0:
                limit = min(max_rounds, longest_path(needs))
            if len(parts) < 2 or depth == limit or run.over:
                break
            new = await reply_to(run, contraction(question, parts, needs), [whole.node])
            if not new.text:
                break
            contracted = await answer_to(run, new.text, [new.node])
            if run.over:
                break
            best = await judged(run, question, [contracted, whole, direct], extract)
            if best is not contracted:
                return best
            question, direct = new.text, contracted
            if depth + 1 < limit:
                whole = await answer_to(run, DECOMPOSE.format(question=question), [new.node])
        return direct

    chosen = await gather(chain(branch) for branch in run.fork(run.root, n))
    return await concluded(run, None, extract, chosen)


def contraction(question: str, parts: Sequence[str], needs: Sequence[Sequence[int]]) -> str:
    """Returns the prompt for a question in which the parts that need no other are given."""
    known = [part for part, wanted in zip(parts, needs, strict=True) if not wanted]
    unsolved = [part.partition("->")[0].strip() for part, wanted in zip(parts, needs, strict=True) if wanted]
    return CONTRACT.format(
        question=question,
        known="\n".join(f"- {part}" for part in known),
        open="\n".join(f"- {part}" for part in unsolved) or "- the question itself",
    )


async def judged(
    run: SearchRun,
    question: str,
    candidates: Sequence[Candidate],
    extract: Extract,
) -> Candidate:
    """Returns the candidate that the model names, or the first with the most frequent answer."""
    prompt = JUDGE.format(question=question, answers=numbered([spoken(c.text) for c in candidates]))
    verdict = await reply_to(run, prompt, [c.node for c in candidates])
    named = choice(verdict.text, len(candidates))
    if named is not None:
        return candidates[named]
    answers = await answers_of(candidates, extract)
    winner = next(iter(vote(answers)), None)
    return candidates[answers.index(winner)]
