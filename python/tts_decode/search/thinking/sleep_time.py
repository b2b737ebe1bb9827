"""Sleep-time compute: notes on a context, written before any question about it is asked."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from ...core.checks import at_least
from ...core.running import gather
from ...rewards.scorer import Scorer
from ...select import extract_answer
from ..answers import Extract, concluded, finish, spoken
from ..decisions import DecideBy
from ..result import SearchResult
from ..run import SearchRun
from ..strategy import strategy

if TYPE_CHECKING:
    from ...core.budget import Budget
    from ...core.interfaces import Branch, Decoder
    from ...core.params import SamplingParams

NOTES = """{context}

Notes on the above so far:
{notes}

Questions about it will come later. Write the notes anew, with everything that may help to answer them: work \
out what follows from it, check what was worked out, leave out what is of no use. If nothing is missing, \
reply with DONE only."""
ANSWER = """{context}

Notes on the above:
{notes}

{question}"""
EMPTY = "[empty]"
DONE = "DONE"
_SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+")


@strategy("notes on the context first, then the question is answered with them")
async def sleep_time(
    run: SearchRun,
    *,
    n: int = 1,
    scorer: Scorer | None = None,
    max_rounds: int = 10,
    max_tokens_notes: int = 256,
    context: str = "",
    notes: str = "",
    end_of_thinking: str = "</think>",
    notes_prompt: str = NOTES,
    answer_prompt: str = ANSWER,
    decide_by: DecideBy = "max",
    extract: Extract = extract_answer,
) -> SearchResult:
    """Writes notes on a context without the question, then answers the question from both.

    Lin, Snell et al., "Sleep-time Compute: Beyond Inference Scaling at Test-time", arXiv 2504.13171,
    sections 3 and 5 (its code: letta-ai/sleep-time-compute).

    Args:
        n: concurrent answers.
        max_rounds: maximum number of times that the notes are written; the paper's agent rethinks up to 10
            times.
        max_tokens_notes: maximum number of tokens of each reply.
        context: what is known before the question. "": all of the question except its last sentence, or all
            of it if it is one sentence.
        notes: existing notes, for example from `think_ahead`: none are written then.
        end_of_thinking: text that ends the thinking; notes hold only what follows it. "": everything.
        notes_prompt: with the fields {context} and {notes}. Each reply replaces the notes; the reply DONE
            ends the rounds and keeps them.
        answer_prompt: with the fields {context}, {notes} and {question}.
        decide_by: as in `best_of_n`, where there is a scorer.
        scorer, extract: which of `n` > 1 answers wins: the best-scored one, or without a scorer a vote over
            what `extract` reads from each.

    Prompts begin with the context, whose KV is computed once. The cost of notes is part of the search's cost
    unless they are given: for several questions on one context, make them once.

    Departures: notes are rewritten by plain replies; the paper's agent calls a function. The model is not
    shown examples of questions; wording.
    """
    at_least(1, n=n, max_rounds=max_rounds, max_tokens_notes=max_tokens_notes)
    run.decide_by(decide_by, extract)
    if context:
        question = run.question
    else:
        context, question = _parted(run.question)

    async def reply(prompt: str) -> str:
        return (await run.ask(prompt, max_tokens=max_tokens_notes))[0]

    if not notes:
        notes = await _written(reply, context, max_rounds, notes_prompt, end_of_thinking)
    if run.over:
        return await run.result()
    prompt = answer_prompt.format(context=context, notes=notes, question=question)
    root = await run.prompt(prompt, question=run.question)
    answers = await gather(finish(run, branch, scorer) for branch in run.fork(root, n))
    run.prune([root])
    return await concluded(run, scorer, extract, answers)


async def think_ahead(
    decoder: Decoder,
    context: str,
    *,
    max_rounds: int = 10,
    max_tokens_notes: int = 256,
    sampling: SamplingParams | None = None,
    budget: Budget | None = None,
    keep: Callable[[Branch], object] | None = None,
    end_of_thinking: str = "</think>",
    notes_prompt: str = NOTES,
    answer_prompt: str = ANSWER,
) -> str:
    """Returns the notes of `sleep_time` on a context, for all questions about it.

    Pass them as `sleep_time(root, context=context, notes=notes)`.

    Args:
        decoder: its model writes the notes. It may differ from the one that answers.
        context: not empty.
        sampling: of each reply; default: the decoder's.
        keep: receives a branch that ends after context and notes, as later prompts begin; `decoder.pin` keeps
            its KV resident.

    Other arguments are those of `sleep_time`.
    """
    at_least(1, max_rounds=max_rounds, max_tokens_notes=max_tokens_notes)
    if not context:
        raise ValueError("context: got no text, expected what is known before the questions")
    root = await decoder.root(notes_prompt.format(context=context, notes=EMPTY), sampling, budget)
    run = SearchRun(root)

    async def reply(prompt: str) -> str:
        return (await run.ask(prompt, max_tokens=max_tokens_notes))[0]

    try:
        with run.of("think_ahead", {}):
            notes = await _written(reply, context, max_rounds, notes_prompt, end_of_thinking)
            if keep is not None:
                keep(await run.prompt(answer_prompt.format(context=context, notes=notes, question="")))
    finally:
        root.release()
    return notes


async def _written(
    reply: Callable[[str], Awaitable[str]], context: str, rounds: int, prompt: str, end_of_thinking: str
) -> str:
    notes = EMPTY
    for _ in range(rounds):
        said = spoken(await reply(prompt.format(context=context, notes=notes)), end_of_thinking)
        if said.strip(" .*") == DONE:
            break
        notes = said or notes
    return notes


def _parted(question: str) -> tuple[str, str]:
    """Returns what precedes the last sentence, and that sentence; for one sentence, the whole twice."""
    parts = list(_SENTENCE.finditer(question.strip()))
    text = question.strip()
    if not parts:
        return text, text
    return text[: parts[-1].start()], text[parts[-1].end() :]
