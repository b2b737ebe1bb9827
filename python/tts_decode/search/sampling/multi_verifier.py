"""BoN-MAV: several verifiers, each with an eye on one aspect, approve of answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ...core.checks import at_least
from ...core.running import gather
from ...select import extract_answer
from ..answers import Extract, choose, distinct, eligible, likeliest, likelihood, sample
from ..decisions import DecideBy
from ..result import SearchResult
from ..run import SearchRun
from ..strategy import strategy

if TYPE_CHECKING:
    from ...core.interfaces import Decoder

VERIFY = """{question}

A proposed response:
{answer}

{aspect} Reply with Yes or No only."""

ASPECTS = (
    "Is the final answer right?",
    "Is every calculation in it right?",
    "Does each of its steps follow from the ones before?",
    "Does it use everything that the question gives, and nothing else?",
    "Does it answer just what was asked, with the unit and in the form that was asked for?",
    "Does it still hold in special and extreme cases?",
)


@strategy("n answers, approved of by verifiers of several aspects")
async def multi_verifier(
    run: SearchRun,
    *,
    n: int = 16,
    verifier_decoders: Sequence[Decoder] = (),
    aspects: Sequence[str] = ASPECTS,
    verify_prompt: str = VERIFY,
    decide_by: DecideBy = "max",
    extract: Extract = extract_answer,
) -> SearchResult:
    """`n` independent samples; the one that most verifiers of single aspects approve wins.

    Lifshitz, McIlraith, Du, "Multi-Agent Verification: Scaling Test-Time Compute with Multiple Verifiers",
    arXiv 2502.20379, section 4 (BoN-MAV).

    n                  number of samples.
    verifier_decoders  models, each of which judges every aspect; empty: the root's own.
    aspects            questions about an answer whose Yes speaks for it.
    verify_prompt      with the fields {question}, {answer} and {aspect}: the part that all verifiers of an
                       answer share comes first, so its KV is computed once.
    decide_by          "max": as described below; "last" is the same. "weighted" and "majority" as in
                       `best_of_n`.
    extract            the answer in a text, or None to abstain.

    A sample's score is the share of approvals; if scores are equal, the likelier sample wins.

    Departures. A verifier approves if P(Yes) > P(No) for its first word; the paper samples an explanation and
    a verdict. A text sampled twice is verified once. The paper chooses aspects and models for each task on a
    validation set.
    """
    at_least(1, n=n)
    run.decide_by(decide_by, extract)
    if not aspects:
        raise ValueError("aspects: got nothing, expected at least one question")
    pool = distinct(eligible(await sample(run, n)))
    if len(pool) == 1 or run.over:
        return run.result(likeliest(pool))
    judges = [(decoder, aspect) for decoder in verifier_decoders or (None,) for aspect in aspects]
    opinions = await gather(
        run.p_yes(
            verify_prompt.format(question=run.question, answer=c.text, aspect=aspect),
            sources=(c.node,),
            decoder=decoder,
        )
        for c in pool
        for decoder, aspect in judges
    )
    counts = [
        sum(p > 0.5 for p in opinions[i * len(judges) : (i + 1) * len(judges)]) for i in range(len(pool))
    ]
    chosen = max(range(len(pool)), key=lambda i: (counts[i], likelihood(pool[i])))
    shares = {c.text: count / len(judges) for c, count in zip(pool, counts, strict=True)}
    return choose(run, pool[chosen] if decide_by in ("max", "last") else None, shares)
