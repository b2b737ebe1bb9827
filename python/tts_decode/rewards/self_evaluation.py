"""The model judges its own text: P(yes) after a short question."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..core.running import gather

if TYPE_CHECKING:
    from ..core.interfaces import Branch, Decoder
    from .scorer import Scorer

_ASKED = "Is the answer so far correct? Reply with Yes or No."
QUESTION = f"\n{_ASKED}\nReply:"


def self_evaluation(
    question: str = QUESTION,
    yes: Sequence[str] = ("Yes", " Yes", "yes", " yes", "YES"),
    no: Sequence[str] = ("No", " No", "no", " no", "NO"),
) -> Scorer:
    """Scorer: P(yes) / (P(yes) + P(no)) of the token that follows the branch's text and `question`.

    Kadavath et al., "Language Models (Mostly) Know What They Know", arXiv 2207.05221, P(True); the same
    read-out as Self-Calibration (Huang et al., arXiv 2503.00031). P(yes) sums over the variants in `yes` that
    are one token, P(no) over those in `no`. A chat model does better with `question` written as its next user
    turn.

    Each branch is copied, the question is appended to the copy, and the copy is released: the questions of
    all branches run in one batch, and the branches' own KV is only read. The copy of a finished branch leaves
    out its closing end-of-sequence token, so that finished and unfinished branches are asked alike.
    """
    if not question:
        raise ValueError("question: got nothing, expected the text to append before reading P(yes)")

    async def ask(branch: Branch, yes_ids: list[int], no_ids: list[int]) -> float:
        ended = branch.finish_reason == "eos"
        copy = branch.copy(at=branch.length - 1 if ended else None)
        try:
            await copy.extend(question)
            logprobs = await copy.next_logprobs(yes_ids + no_ids)
            p_yes, p_no = logprobs[: len(yes_ids)].logsumexp(0), logprobs[len(yes_ids) :].logsumexp(0)
            return float((p_yes - p_no).sigmoid())
        finally:
            copy.release()

    async def self_evaluation(branches: Sequence[Branch]) -> list[float]:
        if not branches:
            return []
        decoder = branches[0].decoder
        yes_ids, no_ids = _single_tokens(decoder, "yes", yes), _single_tokens(decoder, "no", no)
        if not set(yes_ids).isdisjoint(no_ids):
            raise ValueError(
                f"yes: got {list(yes)}, which shares a token with no = {list(no)}, expected different answers"
            )
        return await gather(ask(branch, yes_ids, no_ids) for branch in branches)

    return self_evaluation


def chat_question(tokenizer: Any) -> str:
    """Returns a `question` for `self_evaluation`, written as the user's next turn.

    It is the text from the end of an assistant's turn to the beginning of the next one.
    """
    mark = "@@answer@@"
    turns = [("user", "?"), ("assistant", mark), ("user", _ASKED)]
    messages = [{"role": role, "content": content} for role, content in turns]
    text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return text.partition(mark)[2]


def _single_tokens(decoder: Decoder, name: str, variants: Sequence[str]) -> list[int]:
    encoded = [decoder.token_ids(variant) for variant in variants]
    ids = sorted({tokens[0] for tokens in encoded if len(tokens) == 1})
    if not ids:
        raise ValueError(
            f"{name}: got {list(variants)}, expected one that is a single token of this model; add it"
        )
    return ids
