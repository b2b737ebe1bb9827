"""T1: answers are verified by code that the model writes and a tool runs, then scored."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from ...core.checks import at_least
from ...core.running import gather
from ...rewards.scorer import Scorer
from ...select import extract_answer, last_choice
from ..answers import Extract, choose, distinct, eligible, sample, score_of
from ..decisions import DecideBy
from ..outside import Tool, output_of
from ..result import Candidate, SearchResult
from ..run import SearchRun
from ..strategy import strategy
from .thread import Thread

if TYPE_CHECKING:
    from ...core.interfaces import Decoder

_ANSWERED = "{question}\n\nA proposed response:\n{answer}\n\n"
CODE = (
    _ANSWERED
    + """Write Python code that computes anew what this response computed and ends by printing True if all \
of it is right, else False. Reply with the code only."""
)
VERIFY = _ANSWERED + "Is the final answer of this response right? Reply with Yes or No only."
_BLOCK = re.compile(r"```[^\n]*\n(.*?)(?:```|\Z)", re.DOTALL)


@strategy("n answers, filtered by code that checks them, then scored; the best one wins")
async def t1_verify(
    run: SearchRun,
    *,
    n: int = 16,
    scorer: Scorer | None = None,
    code_decoder: Decoder | None = None,
    tool: Tool | None = None,
    code_prompt: str = CODE,
    verify_prompt: str = VERIFY,
    decide_by: DecideBy = "max",
    extract: Extract = extract_answer,
) -> SearchResult:
    """Lets a tool refute some of `n` answers; the best-scored other wins; lacks the distilled verifiers.

    Kang, Jeong, Cho, "T1: Tool-integrated Self-verification for Test-time Compute Scaling in Small Language
    Models", arXiv 2504.04718: first a verifier writes code and runs it, then a reward model scores what
    passes. The paper distils both verifiers into the small model itself.

    Args:
        n: number of answers.
        scorer: scores finished answers, in [0, 1]; None: P(Yes) as the reply to `verify_prompt`.
        code_decoder: writes the code; None: the root's own.
        tool: runs code and returns what it printed; if it raises an exception, the exception's text counts.
            An async function is awaited; another one runs in a thread. None: nothing is refuted.
        code_prompt: with the fields {question} and {answer}. An answer is refuted if the last "True" or
            "False" that its code printed is "False".
        verify_prompt: with the same fields.
        decide_by: "max": as described below; "last" is the same. "weighted" and "majority" as in `best_of_n`.
        extract: the answer in a text, or None to abstain.

    A refuted candidate's score is 0; if all are refuted, the best-scored one still wins. Departures: code
    that prints neither word, or fails, refutes nothing; a text sampled twice is verified once; prompts are
    ours.
    """
    at_least(1, n=n)
    run.decide_by(decide_by, extract)
    pool = eligible(await sample(run, n, scorer))
    if run.over:
        return await run.result()

    async def verify(answer: Candidate) -> tuple[bool, float]:
        """Returns whether the tool does not refute the answer, and the answer's score."""
        fields = {"question": run.question, "answer": answer.text}
        sources, passed, thread = (answer.node,), True, Thread(run)
        if tool is not None:
            prompt = code_prompt.format(**fields)
            (code,) = await thread.replies(prompt, sources=sources, decoder=code_decoder)
            passed = last_choice(await output_of(run, tool, code_in(code)), ("True", "False")) != "False"
        if scorer is not None:
            score = score_of(answer)
        else:
            score = await run.p_yes(verify_prompt.format(**fields), sources=sources)
        thread.close()
        return passed, score

    texts = distinct(pool)
    verdicts = await gather(verify(answer) for answer in texts)
    best = texts[max(range(len(texts)), key=verdicts.__getitem__)]
    scores = [score if passed else 0.0 for passed, score in verdicts]
    chosen = best if decide_by in ("max", "last") else None
    return await choose(run, chosen, {c.text: score for c, score in zip(texts, scores, strict=True)})


def code_in(text: str) -> str:
    """Returns the last code block in a text, or all of it if there is none."""
    blocks = _BLOCK.findall(text)
    return blocks[-1] if blocks else text
