"""This family's prompts: replies that go into further prompts, and answers that are candidates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ..answers import finish, spoken
from ..result import Candidate
from ..run import SearchRun

if TYPE_CHECKING:
    from ...core.interfaces import Decoder


class Reply(NamedTuple):
    text: str  # without the model's thinking
    node: int  # its place in the tree


async def reply_to(
    run: SearchRun,
    prompt: str,
    sources: Sequence[int] = (),
    *,
    decoder: Decoder | None = None,
    **sampling: Any,
) -> Reply:
    """Returns the model's reply to a prompt; not a candidate. sources: nodes that made the prompt."""
    params = run.whole_reply(**sampling)
    branch = await run.prompt(prompt, sources=sources, decoder=decoder, sampling=params)
    await run.complete(branch)
    reply = Reply(spoken(branch.text), run.node(branch))
    run.tree[reply.node].status = "finished"
    run.prune([branch])
    return reply


async def answer_to(
    run: SearchRun, prompt: str, sources: Sequence[int] = (), *, decoder: Decoder | None = None
) -> Candidate:
    """Returns the model's answer to the question as worded in this prompt: a candidate."""
    return await finish(run, await run.prompt(prompt, sources=sources, decoder=decoder))
