"""ATLAS: retrieval at tokens that the model writes for lack of information."""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import numpy as np

from tts_kernels.checks import number

from ...core.checks import at_least
from ...core.running import gather
from ...errors import UnsupportedByEngineError
from ...rewards.scorer import Scorer
from ...select import attended_tokens, attention_gradient, extract_answer
from ..answers import Extract, concluded, finish
from ..decisions import DecideBy
from ..outside import TextFunction, text_for
from ..result import Candidate, SearchResult
from ..run import SearchRun
from ..strategy import strategy

if TYPE_CHECKING:
    from ...core.interfaces import Branch

Trigger = Callable[["Branch", int], Awaitable["str | None"]]
"""trigger(branch, position) returns what to look up before the token at `position` of `branch.tokens` is
sampled again, or None if nothing is missing."""

WITH_TEXT = "{retrieved}\n\n{question}"
QUERY_TOKENS = 7
_STOPWORDS = """a an and are as at be but by for from had has have he her his i if in into is it its me my
no not of on or our she so than that the their them then there these they this those to us was we were what
when which who will with would you your"""
STOPWORDS = frozenset(re.findall(r"\w+", _STOPWORDS))


@strategy("text is retrieved where the model is in want of it, and the answer goes on with it in view")
async def atlas(
    run: SearchRun,
    *,
    n: int = 1,
    scorer: Scorer | None = None,
    max_retrievals: int = 3,
    retrieve: TextFunction | None = None,
    trigger: Trigger | None = None,
    threshold: float = 0.5,
    retrieved_prompt: str = WITH_TEXT,
    decide_by: DecideBy = "max",
    extract: Extract = extract_answer,
) -> SearchResult:
    """Retrieves a text where a token was written in doubt, and resumes the answer before that token.

    Sagar Srinivas et al., "Scaling Test-Time Inference with Policy-Optimized, Dynamic Retrieval-Augmented
    Generation via KV Caching and Decoding", arXiv 2504.01281, section 2.2 (ATLAS). The resumed answer has the
    retrieved text in its prompt.

    Args:
        n: concurrent answers.
        max_retrievals: maximum number of retrievals per answer.
        retrieve: returns text for a query, "" for nothing. An async function is awaited; another one runs in
            a thread. None: nothing is retrieved.
        trigger: called for each token that passes the check below: what to look up, or None. None: the check
            alone decides, and the last words before the token are the query. `attention_trigger` makes the
            paper's.
        threshold: probability below which a token is checked, if it is part of a word that is no stopword,
            number or punctuation.
        retrieved_prompt: with the fields {question} and {retrieved}; it replaces the prompt.
        decide_by: as in `best_of_n`, where there is a scorer.
        scorer, extract: which of `n` > 1 answers wins: the best-scored one, or without a scorer a vote over
            what `extract` reads from each.

    Departures: texts come before the question, and what was written so far is read again after it, because
    the paper does not say where they go; only the latest is kept. The model does not write the query. The
    factor for the machine's load is left out: it is a threshold for `attention_trigger`.
    """
    at_least(1, n=n)
    run.decide_by(decide_by, extract)
    at_least(0, max_retrievals=max_retrievals)
    number("threshold", threshold, low=0, high=1)

    async def missing(branch: Branch, begin: int) -> tuple[int, str] | None:
        """Returns the first token from `begin` on that needs information, and what to look up."""
        for at in range(begin, branch.length):
            if not in_doubt(branch, at, threshold):
                continue
            query = last_words(branch, at) if trigger is None else await told(trigger, branch, at)
            if query:
                return at, query
        return None

    async def told(trigger: Trigger, branch: Branch, at: int) -> str:
        return await text_for(run, "trigger", lambda _: trigger(branch, at), f"{branch.full_text}\n{at}")

    async def informed(branch: Branch, at: int, text: str) -> Branch:
        """Returns another branch with the text in its prompt and what was written before position `at`."""
        said = branch.text[: len(branch.text) - len(branch.text_from(at))]
        prompt = retrieved_prompt.format(question=run.question, retrieved=text)
        other = await run.prompt(prompt, sources=[run.node(branch)], question=run.question)
        run.prune([branch])
        if said:
            await run.extend(other, said)
        return other

    async def line(branch: Branch) -> Candidate:
        retrieved = 0
        while not branch.finished:
            begin = branch.length
            await run.step([branch])
            while retrieve is not None and retrieved < max_retrievals and not run.over:
                found = await missing(branch, begin)
                if found is None:
                    break
                at, query = found
                text = await text_for(run, "retrieve", retrieve, query)
                retrieved += 1
                if text:
                    branch = await informed(branch, at, text)
                    break
                begin = at + 1
        return await finish(run, branch, scorer)

    answers = await gather(line(branch) for branch in run.fork(run.root, n))
    return await concluded(run, scorer, extract, answers)


def in_doubt(branch: Branch, at: int, threshold: float) -> bool:
    """Whether the token was improbable and is part of a meaningful word."""
    logprob = branch.logprobs[at - branch.prompt_length]
    if math.isnan(logprob):
        raise UnsupportedByEngineError(
            "atlas reads the log-probabilities of tokens, which the engine hides; pass a trigger= of "
            "your own, or use a TreeDecoder"
        )
    word = _token_text(branch, at).strip().lower()
    return math.exp(logprob) < threshold and word not in STOPWORDS and any(map(str.isalpha, word))


def last_words(branch: Branch, at: int) -> str:
    """Returns the last meaningful words before a token."""
    before = branch.full_text[: len(branch.full_text) - len(branch.text_from(at))]
    words = [word for word in re.findall(r"\w+", before) if word.lower() not in STOPWORDS]
    return " ".join(words[-QUERY_TOKENS:])


def _token_text(branch: Branch, at: int) -> str:
    rest = branch.text_from(at)
    after = branch.text_from(at + 1) if at + 1 < branch.length else ""
    return rest[: len(rest) - len(after)]


def attention_trigger(
    model: object, threshold: float, *, k: int = QUERY_TOKENS, beta: float = 0.7
) -> Trigger:
    """Returns the paper's trigger: a token needs information if its MLAG is `threshold` or more.

    MLAG is `select.attention_gradient`. The query is the `k` tokens that `select.attended_tokens` finds.

    Args:
        model: a Hugging Face causal model that returns its attentions (`attn_implementation="eager"`). It
            runs on the whole text for each token that is checked: a reference, and slow.
    """
    number("threshold", threshold, low=0)
    at_least(1, k=k)

    async def trigger(branch: Branch, position: int) -> str | None:
        ids = branch.tokens[: position + 1]
        attention, states = await asyncio.to_thread(_attend, model, ids)
        probability = math.exp(min(branch.logprobs[position - branch.prompt_length], 0.0))
        if attention_gradient(attention, probability) < threshold:
            return None
        kept = attended_tokens(attention, states, k, beta=beta)
        return branch.text_of([ids[i] for i in kept]).strip() or None

    return trigger


def _attend(model: object, ids: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Returns attention [layers, heads, tokens, tokens] and states [layers, tokens, hidden] of a text."""
    import torch

    with torch.no_grad():
        out = model(  # type: ignore[operator]  # any class of transformers
            torch.tensor([ids]), output_attentions=True, output_hidden_states=True, use_cache=False
        )
    if not out.attentions or out.attentions[0] is None:
        raise ValueError(
            f"model: got {type(model).__name__} without attentions, expected one that returns them; load it "
            'with attn_implementation="eager"'
        )
    attention = torch.stack([layer[0] for layer in out.attentions]).double().numpy()
    states = torch.stack([layer[0] for layer in out.hidden_states[1:]]).double().numpy()
    return attention, states
