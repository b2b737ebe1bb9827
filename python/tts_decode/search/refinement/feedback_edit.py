"""Feedback and edit: one model drafts, a second comments, a third edits, and a scorer selects."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from ...core.checks import at_least
from ...core.running import gather
from ...errors import PromptTooLongError
from ...rewards.scorer import Scorer
from ...select import extract_answer
from ..answers import Extract, finish
from ..decisions import DecideBy
from ..result import SearchResult
from ..run import SearchRun
from ..strategy import strategy
from .thread import Thread

if TYPE_CHECKING:
    from ...core.interfaces import Branch, Decoder

_DRAFTED = "{question}\n\nA draft of the response:\n{answer}\n\n"
FEEDBACK = _DRAFTED + "How helpful is the draft? Say what is good about it, what is not, and why."
EDIT = _DRAFTED + "Feedback on the draft:\n{feedback}\n\nWrite the response anew, with this feedback in mind."


@strategy("drafts, feedback on each, edits of each; the best-scored edit wins")
async def feedback_edit(
    run: SearchRun,
    *,
    n: int = 4,
    scorer: Scorer,
    feedback_decoder: Decoder | None = None,
    edit_decoder: Decoder | None = None,
    num_feedbacks: int = 3,
    num_edits: int = 2,
    feedback_prompt: str = FEEDBACK,
    edit_prompt: str = EDIT,
    decide_by: DecideBy = "max",
    extract: Extract = extract_answer,
) -> SearchResult:
    """Writes drafts, each with `num_feedbacks` comments and `num_edits` edits; lacks the dedicated models.

    Wang et al., "Dedicated Feedback and Edit Models Empower Inference-Time Scaling for Open-Ended
    General-Domain Tasks" (HelpSteer3), arXiv 2503.04378, which scales all three numbers.

    Args:
        n: drafts.
        scorer: selects among the edited responses; drafts are not scored.
        feedback_decoder: writes the comments; None: the root's own model.
        edit_decoder: writes the edits; None: the root's own model. The paper trains both models on human
            feedback and edits; any model works, within its own skill.
        num_feedbacks: comments on a draft.
        num_edits: edited responses of a draft.
        feedback_prompt: with the fields {question} and {answer}.
        edit_prompt: with the field {feedback} too.
        decide_by, extract: as in `best_of_n`.

    Drafts do not wait for each other. The two prompts begin alike, so one model for both prefills question
    and draft once. Departures: the edit model gets all comments and judges which are effective; defaults and
    prompts are ours.
    """
    at_least(1, n=n, num_feedbacks=num_feedbacks, num_edits=num_edits)
    run.decide_by(decide_by, extract)

    async def draft(branch: Branch) -> None:
        drafted = await finish(run, branch)
        if run.over:
            return
        fields = {"question": run.question, "answer": drafted.text}
        sources, thread = (drafted.node,), Thread(run)
        with suppress(PromptTooLongError):
            said = await thread.replies(
                feedback_prompt.format(**fields), num_feedbacks, sources=sources, decoder=feedback_decoder
            )
            if not run.over:
                prompt = edit_prompt.format(feedback="\n\n".join(said), **fields)
                await thread.answers(prompt, num_edits, scorer, sources=sources, decoder=edit_decoder)
        thread.close()

    await gather(draft(branch) for branch in run.fork(run.root, n))
    return await run.result()
