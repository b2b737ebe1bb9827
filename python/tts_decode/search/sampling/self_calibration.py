"""Self-calibration: the model's confidence in each answer stops the sampling and weights the votes."""

from __future__ import annotations

from tts_kernels.checks import number

from ...core.checks import at_least
from ...rewards.scorer import Scorer
from ...rewards.self_evaluation import self_evaluation
from ...select import extract_answer, vote
from ..answers import Extract, answers_of, sample
from ..decisions import DecideBy
from ..result import Candidate, SearchResult
from ..run import SearchRun
from ..strategy import strategy

QUESTION = "\nIs the answer correct? (Yes/No)\n"


@strategy("answers until the model is confident of one")
async def self_calibration(
    run: SearchRun,
    *,
    max_samples: int = 16,
    scorer: Scorer | None = None,
    parallel: int = 4,
    threshold: float = 0.8,
    decide_by: DecideBy = "max",
    extract: Extract = extract_answer,
) -> SearchResult:
    """Samples answers until the model is confident of one, or of a vote; lacks the calibrated model.

    Huang et al., "Efficient Test-Time Scaling via Self-Calibration", arXiv 2503.00031, section 4 (its code:
    Chengsong-Huang/Self-Calibration).

    Args:
        max_samples: maximum number of samples.
        scorer: confidence of finished samples, in [0, 1]; None: P(yes) after a question appended to the
            answer (`rewards.self_evaluation`), which costs only the question's tokens. For a chat model pass
            `self_evaluation(question)` with the question as its next user turn.
        parallel: samples drawn together; 1 is the paper's order.
        threshold: confidence, or share of the votes, that ends the search.
        decide_by: "max" or "last", here the same: early-stopping best-of-n, the first answer whose confidence
            reaches the threshold, or else the most confident one. "weighted": confidence-weighted
            self-consistency, which ends once the leading answer of two samples or more holds that share of
            all confidence. "majority": the same with one vote per sample.
        extract: the answer in a sample's text, or None to abstain.

    Departures. The paper asks a model trained to answer that question with a calibrated confidence; here any
    model works, as far as it is calibrated. P(yes) is P(yes) / (P(yes) + P(no)); the code uses P("Yes")
    alone. If no sample reaches the threshold, the most confident one wins; in the code the last one does.
    """
    at_least(1, max_samples=max_samples, parallel=parallel)
    number("threshold", threshold, above=0, high=1)
    run.decide_by(decide_by, extract)
    scorer = scorer or self_evaluation(QUESTION)
    drawn: list[Candidate] = []
    while len(drawn) < max_samples and not run.over:
        latest = await sample(run, min(parallel, max_samples - len(drawn)), scorer)
        drawn += latest
        if decide_by in ("max", "last"):
            for candidate in latest:
                if candidate.complete and _confidence(candidate) >= threshold:
                    return await run.result(candidate)
        elif len(drawn) > 1:
            weights = [_confidence(c) for c in drawn] if decide_by == "weighted" else None
            votes = vote(await answers_of(drawn, extract), weights)
            if votes and max(votes.values()) >= threshold * sum(votes.values()) > 0:
                break
    return await run.result()


def _confidence(candidate: Candidate) -> float:
    return candidate.score or 0.0
