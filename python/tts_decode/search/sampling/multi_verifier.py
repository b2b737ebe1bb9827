"""BoN-MAV: several verifiers, each checking one aspect, approve answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from ...core.checks import at_least, check_choice
from ...core.prompts import is_chat
from ...core.running import gather
from ...select import extract_answer, last_choice
from ..answers import Extract, choose, distinct, eligible, likeliest, sample
from ..decisions import DecideBy
from ..result import Candidate, SearchResult
from ..run import SearchRun
from ..strategy import strategy

if TYPE_CHECKING:
    from ...core.interfaces import Decoder
    from ...core.prompts import Prompt

VERIFY = """{question}

A proposed response:
{answer}

{aspect} Go through the response with an eye on nothing else, think aloud, and stop at the first flaw."""

CLARIFY = "In view of this, reply with one word, Yes or No: {aspect}"

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
    chosen: Sequence[int] | None = None,
    verdict: Literal["sampled", "p_yes"] = "sampled",
    verify_prompt: str = VERIFY,
    clarify_prompt: str = CLARIFY,
    decide_by: DecideBy = "max",
    extract: Extract = extract_answer,
) -> SearchResult:
    """Draws `n` independent samples; the one that most verifiers of single aspects approve wins.

    Lifshitz, McIlraith, Du, "Multi-Agent Verification: Scaling Test-Time Compute with Multiple Verifiers",
    arXiv 2502.20379, section 4 (BoN-MAV), and the authors' code (Shalev-Lifshitz/MultiAgentVerification).

    Args:
        n: number of samples.
        verifier_decoders: models, each of which judges every aspect; empty: the root's own.
        aspects: questions about an answer for which Yes is favourable.
        chosen: which of the verifiers judge, by index in the list of all aspects of the first model, then
            those of the next; None: all. `select.choose_verifiers` finds them on problems whose answers are
            known.
        verdict: "sampled": a verifier writes an analysis at temperature 0, then a verdict based on it, both
            sampled greedily; "p_yes": no analysis, it approves if P(Yes) > P(No).
        verify_prompt: with the fields {question}, {answer} and {aspect}: the part that all verifiers of an
            answer share comes first, so its KV is computed once.
        clarify_prompt: with the field {aspect}: asks for the verdict alone. It follows the analysis as a
            user's turn in a chat, elsewhere as a new paragraph.
        decide_by: "max": as described below; "last" is the same. "weighted" and "majority" as in `best_of_n`.
        extract: the answer in a text, or None to abstain.

    A sample's score is the share of approvals; among equals the first wins. A reply without a verdict does
    not approve. If the budget ends before anything is judged, the likeliest sample wins.

    Departures. The prompts and aspects are ours, and every verifier writes an analysis; one of the paper's
    ten gives its verdict at once. A text sampled twice is verified once, which at temperature 0 is the same.
    The paper fixes the verifiers of each benchmark; `choose_verifiers` adds them one by one.
    """
    at_least(1, n=n)
    check_choice("verdict", verdict, ("sampled", "p_yes"))
    run.decide_by(decide_by, extract)
    if not aspects:
        raise ValueError("aspects: got nothing, expected at least one question")
    judges = [(decoder, aspect) for decoder in verifier_decoders or (None,) for aspect in aspects]
    if chosen is not None:
        if not chosen or not all(0 <= i < len(judges) for i in chosen):
            raise ValueError(
                f"chosen: got {list(chosen)}, expected places 0..{len(judges) - 1}, at least one"
            )
        judges = [judges[i] for i in chosen]
    pool = distinct(eligible(await sample(run, n)))
    if len(pool) == 1 or run.over:
        return await run.result(likeliest(pool))

    async def approves(candidate: Candidate, decoder: Decoder | None, aspect: str) -> bool:
        verify = verify_prompt.format(question=run.question, answer=candidate.text, aspect=aspect)
        clarify = clarify_prompt.format(aspect=aspect)
        sources = (candidate.node,)
        if verdict == "p_yes":
            return await run.p_yes(f"{verify}\n\n{clarify}", sources=sources, decoder=decoder) > 0.5
        (analysis,) = await run.ask(verify, sources=sources, decoder=decoder, temperature=0.0)
        asked: Prompt = f"{verify}\n\n{analysis}\n\n{clarify}"
        if is_chat(run.root.prompt) and (decoder is None or decoder.knows_chat):
            said = (("user", verify), ("assistant", analysis), ("user", clarify))
            asked = [{"role": role, "content": text} for role, text in said]
        (reply,) = await run.ask(asked, sources=sources, decoder=decoder, temperature=0.0)
        return last_choice(reply, ("Yes", "No")) == "Yes"

    opinions = await gather(approves(c, decoder, aspect) for c in pool for decoder, aspect in judges)
    counts = [sum(opinions[i * len(judges) : (i + 1) * len(judges)]) for i in range(len(pool))]
    best = max(range(len(pool)), key=counts.__getitem__)
    shares = {c.text: count / len(judges) for c, count in zip(pool, counts, strict=True)}
    return await choose(run, pool[best] if decide_by in ("max", "last") else None, shares)
