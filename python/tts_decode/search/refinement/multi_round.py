"""Multi-round thinking: the model gets its last answer back, without the thinking, and answers again."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from ...core.checks import at_least
from ...core.running import gather
from ...errors import PromptTooLongError
from ...rewards.scorer import Scorer
from ...select import extract_answer
from ..answers import Extract, concluded, finish, spoken
from ..decisions import DecideBy
from ..result import Candidate, SearchResult
from ..run import SearchRun
from ..strategy import strategy
from .thread import answers_to

if TYPE_CHECKING:
    from ...core.interfaces import Branch

AGAIN = """{question}

An earlier answer to this:
<answer>
{answer}
</answer>

Answer once more, from the beginning."""


@strategy("each answer goes back to the model, which answers again without its old thoughts")
async def multi_round(
    run: SearchRun,
    *,
    n: int = 1,
    scorer: Scorer | None = None,
    max_rounds: int = 1,
    end_of_thinking: str = "</think>",
    refine_prompt: str = AGAIN,
    decide_by: DecideBy = "max",
    extract: Extract = extract_answer,
) -> SearchResult:
    """Rewrites each of `n` answers `max_rounds` times from the question and the last answer alone.

    Tian et al., "Think Twice: Enhancing LLM Reasoning by Scaling Multi-round Test-time Thinking", arXiv
    2503.19855; the paper counts the first answer as a round and goes up to 4, here `max_rounds=3`.

    Args:
        n: concurrent lines.
        max_rounds: answers of a line after its first.
        end_of_thinking: text that ends the thinking; the next prompt holds only what follows it. "": the
            whole answer.
        refine_prompt: with the fields {question} and {answer}.
        scorer, extract: which answer wins: the best-scored one of all rounds, or without a scorer a vote over
            what `extract` reads from each line's last answer.
        decide_by: as in `best_of_n`, where there is a scorer.

    Prompts begin with the question, so every round finds its KV resident. Departures: `n` lines; the paper
    reports the mean accuracy of one; the wording.
    """
    at_least(1, n=n)
    at_least(0, max_rounds=max_rounds)
    run.decide_by(decide_by, extract)

    async def line(branch: Branch) -> Candidate:
        answer = await finish(run, branch, scorer)
        with suppress(PromptTooLongError):
            for _ in range(max_rounds):
                if run.over:
                    break
                said = refine_prompt.format(
                    question=run.question, answer=spoken(answer.text, end_of_thinking)
                )
                (latest,) = await answers_to(run, said, scorer=scorer, sources=(answer.node,))
                answer = latest if latest.complete else answer
        return answer

    last = await gather(line(branch) for branch in run.fork(run.root, n))
    return await concluded(run, scorer, extract, last)
