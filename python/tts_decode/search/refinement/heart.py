"""HEART: sends an answer back with an emotional phrase, alternating between negative and positive ones."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from ...core.checks import at_least
from ...core.running import gather
from ...errors import PromptTooLongError
from ...rewards.scorer import Scorer
from ...select import extract_answer
from ..answers import Extract, concluded, finish, score_of
from ..decisions import DecideBy
from ..result import Candidate, SearchResult
from ..run import SearchRun
from ..strategy import strategy
from .thread import answers_to

if TYPE_CHECKING:
    from ...core.interfaces import Branch

NEGATIVE = (  # sadness, fear, anger, disgust
    "It saddens me to see you miss this; you had it within reach.",
    "I am afraid of what happens if this goes out with the mistake in it.",
    "This makes me angry: you did not look closely enough.",
    "I can hardly look at this. Such careless work is beneath you.",
)
POSITIVE = (  # happiness, surprise
    "I am so glad that you are the one working on this; the next try will be a joy to read.",
    "Oh! There is a twist in this that I did not see coming. Look again and you will find it.",
)
AGAIN = """{question}

Your last answer:
{answer}

{cue} Find what went wrong and answer again."""
SYNTHESIS = """{question}

{answers}

These are several attempts at the question. Weigh them against each other and give the right answer."""


@strategy("an answer is sent back with words of alternating feeling until a verifier accepts it")
async def heart(
    run: SearchRun,
    *,
    n: int = 1,
    scorer: Scorer | None = None,
    max_rounds: int = 6,
    threshold: float = 1.0,
    negative: Sequence[str] = NEGATIVE,
    positive: Sequence[str] = POSITIVE,
    refine_prompt: str = AGAIN,
    synthesis_prompt: str = SYNTHESIS,
    decide_by: DecideBy = "max",
    extract: Extract = extract_answer,
) -> SearchResult:
    """Sends an answer that is not accepted back with an emotional phrase, up to `max_rounds` times.

    Pinto et al., "HEART: Emotionally-driven test-time scaling of Language Models", arXiv 2509.22876: feedback
    of short phrases for Ekman's six emotions, whose tone changes from iteration to iteration.

    Args:
        n: concurrent lines; each begins with a different phrase.
        max_rounds: maximum number of corrections of a line.
        scorer, threshold: a line ends once one of its answers scores `threshold`, and the best-scored answer
            wins: the paper's setting with a verifier. Without a scorer all rounds run, then the model writes
            one answer given all of them: the setting without a verifier.
        negative, positive: phrases; the first round takes a negative one, the next a positive one, and so on.
        refine_prompt: with the fields {question}, {answer} and {cue}.
        synthesis_prompt: with the fields {question} and {answers}.
        decide_by: as in `best_of_n`, where there is a scorer.
        extract: the answer in a text, for the vote that decides if budget or positions do not suffice for the
            synthesis.

    The phrases are ours. Departures: `n`; all lines alternate, and phrases are not drawn at random, so the
    search does not depend on what ends first.
    """
    at_least(1, n=n)
    at_least(0, max_rounds=max_rounds)
    run.decide_by(decide_by, extract)
    for name, cues in (("negative", negative), ("positive", positive)):
        if not cues:
            raise ValueError(f"{name}: got nothing, expected at least one phrase")

    async def line(number: int, branch: Branch) -> list[Candidate]:
        answer = await finish(run, branch, scorer)
        attempts = [answer]
        with suppress(PromptTooLongError):
            for i in range(max_rounds):
                if run.over or (scorer is not None and score_of(answer) >= threshold):
                    break
                cues = positive if i % 2 else negative
                cue = cues[(number + i // 2) % len(cues)]
                said = refine_prompt.format(question=run.question, answer=answer.text, cue=cue)
                (answer,) = await answers_to(run, said, scorer=scorer, sources=(answer.node,))
                attempts.append(answer)
        return attempts

    lines = await gather(line(i, branch) for i, branch in enumerate(run.fork(run.root, n)))
    attempts = [answer for answers in lines for answer in answers]
    if scorer is not None or len(attempts) == 1 or run.over:
        return await concluded(run, scorer, extract, attempts)
    shown = "\n\n".join(f"Attempt {i}:\n{answer.text}" for i, answer in enumerate(attempts, 1))
    said = synthesis_prompt.format(question=run.question, answers=shown)
    with suppress(PromptTooLongError):
        (final,) = await answers_to(run, said, sources=[answer.node for answer in attempts])
        if final.complete:
            return await run.result(final)
    return await concluded(run, scorer, extract, attempts)
