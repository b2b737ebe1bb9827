"""DeepConf: stops traces whose confidence falls, and lets the confident ones vote."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from tts_kernels.checks import number

from ...core.checks import at_least, check_choice
from ...core.running import gather
from ...errors import UnsupportedByEngineError
from ...select import (
    MEASURES,
    extract_answer,
    group_confidences,
    top_percent_bar,
    trace_confidence,
    vote,
)
from ..answers import Extract, answers_of, decide, eligible, score_of
from ..result import Candidate, SearchResult
from ..run import SearchRun
from ..strategy import strategy

if TYPE_CHECKING:
    from ...core.interfaces import Branch
    from ...core.step import Step


@strategy("traces stopped when their confidence falls, a vote of the confident ones")
async def deepconf(
    run: SearchRun,
    *,
    max_samples: int = 64,
    num_warmup: int = 16,
    parallel: int = 16,
    eta: float = 10.0,
    window: int = 2048,
    measure: Literal["lowest", "bottom", "tail", "mean"] = "lowest",
    signal: Literal["top", "entropy"] = "top",
    num_likeliest: int = 20,
    num_between: int = 16,
    threshold: float = 0.95,
    extract: Extract = extract_answer,
) -> SearchResult:
    """Calibrates a confidence bar on some finished traces, then stops traces that fall below it.

    Fu et al., "Deep Think with Confidence", arXiv 2508.15260, sections 3.1 and 3.2 (its code:
    facebookresearch/deepconf). A token's confidence is minus the mean log-probability of the likeliest tokens
    at its position; a group's is the mean over `window` consecutive tokens.

    Args:
        max_samples: maximum number of traces.
        num_warmup: traces that are finished first, whatever their confidence. If it is `max_samples` or more,
            nothing is stopped: the paper's offline variant.
        parallel: later traces that are drawn together.
        eta: percent of the warm-up traces, the most confident ones, that set the bar: 10 is DeepConf-low, 90
            DeepConf-high.
        window: tokens of a group. A trace of fewer tokens is one group, which is checked when it ends.
        measure: confidence of a trace, which is compared with the bar and is the weight of its vote; see
            `select.trace_confidence`. Only "lowest" can stop a trace.
        signal: "top": as above, if the engine lists likely tokens (text engines refuse). "entropy":
            exp(-entropy) of the distribution, for engines that report only that.
        num_likeliest: tokens that are listed.
        num_between: tokens between checks of a running trace.
        threshold: share of all votes that ends the search once an answer has it.
        extract: the answer in a trace's text, or None to abstain.

    A trace whose latest group is below the bar is pruned, and its pages are freed. Warm-up traces at or above
    the bar and later ones that never fell below it vote, by their confidence; the traces with an answer set
    the offline variant's bar. `best` is the most confident trace with the winning answer.

    Departures. A running trace is checked every `num_between` tokens, in the paper's engine at each; stopped
    traces do not vote, so the votes are the same. "entropy" is not in the paper. Confidences are not rounded,
    and the sampled token does not count if it is not among the likeliest. The code draws all traces after the
    warm-up at once; the share of votes is tested after `parallel` of them.
    """
    at_least(
        1,
        max_samples=max_samples,
        num_warmup=num_warmup,
        parallel=parallel,
        window=window,
        num_likeliest=num_likeliest,
        num_between=num_between,
    )
    number("eta", eta, above=0, high=100)
    number("threshold", threshold, above=0, high=1)
    check_choice("measure", measure, MEASURES)
    check_choice("signal", signal, ("top", "entropy"))
    offline = num_warmup >= max_samples
    if not offline and measure != "lowest":
        raise ValueError(
            f"measure: got {measure!r}, expected 'lowest' where traces may be stopped; set num_warmup >= "
            f"max_samples = {max_samples} to finish all"
        )
    listed = num_likeliest if signal == "top" else 0

    async def trace(branch: Branch, bar: float | None = None) -> Candidate | None:
        """Returns a finished trace, its confidence as score; None if it fell below the bar."""
        confidences: list[float] = []
        looks = {} if bar is None else {"max_step_tokens": num_between}
        while not branch.finished:
            (step,) = await run.step([branch], top_logprobs=listed, **looks)
            latest = _confidences(step, signal)
            confidences += latest
            if bar is None or branch.finished or len(confidences) < window:
                continue
            if min(group_confidences(confidences[-(window + len(latest) - 1) :], window)) < bar:
                run.prune([branch])
                return None
        return run.end(branch, trace_confidence(confidences, measure, window))

    async def traces(count: int, bar: float | None = None) -> list[Candidate]:
        made = await gather(trace(branch, bar) for branch in run.fork(run.root, count))
        return [candidate for candidate in made if candidate is not None]

    drawn = min(num_warmup, max_samples)
    finished = await traces(drawn)
    measured = [c for c in finished if not offline or extract(c.text) is not None] or finished
    bar = top_percent_bar([score_of(c) for c in measured], eta)
    voters = [c for c in finished if score_of(c) >= bar]
    while drawn < max_samples and not run.over and not await _settled(voters, extract, threshold):
        count = min(parallel, max_samples - drawn)
        drawn += count
        voters += [c for c in await traces(count, bar) if score_of(c) >= bar]
    voters = eligible(voters)
    return await decide(run, voters, extract, [score_of(c) for c in voters], rank=score_of)


def _confidences(step: Step, signal: str) -> list[float]:
    """Returns one confidence per token of the step."""
    if signal == "entropy":
        confidences = [math.exp(-entropy) for entropy in step.entropies]
        if any(map(math.isnan, confidences)):
            raise UnsupportedByEngineError(
                "deepconf reads the entropies of tokens, which the engine does not tell; use "
                "signal='top', or a TreeDecoder"
            )
        return confidences
    return [-math.fsum(logprob for _, logprob in top) / len(top) for top in step.top_logprobs]


async def _settled(voters: list[Candidate], extract: Extract, threshold: float) -> bool:
    votes = vote(await answers_of(voters, extract), [score_of(c) for c in voters])
    return bool(votes) and max(votes.values()) >= threshold * math.fsum(votes.values()) > 0
