"""Shared by the strategies of this family: caps, ends that are taken back, forced text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..run import SearchRun

if TYPE_CHECKING:
    from ...core.interfaces import Branch


async def sample_upto(run: SearchRun, branch: Branch, cap: int, stop: tuple[str, ...] = ()) -> str:
    """Samples in one step until `cap` tokens follow the prompt, including forced ones.

    Returns why the step ended: "stop_string", or the branch's finish reason.
    """
    (step,) = await run.step([branch], stop=stop, stop_token_ids=(), max_tokens=cap, max_step_tokens=cap)
    return step.reason


def take_back(run: SearchRun, branch: Branch, stop: str = "") -> None:
    """Cuts off what ended the branch: its end-of-sequence token, or else the last `stop` and what follows.

    A token that extends into `stop` from the left is cut too.
    """
    if branch.finish_reason == "eos":
        run.truncate(branch, branch.length - 1)
        return
    begin = branch.full_text.rfind(stop)
    while len(branch.full_text) > begin:
        run.truncate(branch, branch.length - 1)


def fits(branch: Branch, text: str) -> bool:
    """Whether the model certainly has positions left for the text: a token has at least one byte."""
    limit = branch.decoder.max_positions
    return limit is None or branch.length + len(text.encode()) <= limit


async def force(run: SearchRun, branch: Branch, text: str) -> bool:
    """Appends the text, unless it might exceed the model's positions: then the branch is finished."""
    if not fits(branch, text):
        if not branch.finished:
            branch.finish("length")
        return False
    await run.extend(branch, text)
    return True


async def complete_answer(run: SearchRun, branch: Branch) -> None:
    """Samples to the end of the text; the continuation has its own `max_tokens`, the root's."""
    there = branch.length - branch.prompt_length
    await run.complete(branch, max_tokens=there + run.root.sampling.max_tokens)
