"""Step-level beam search against a scorer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tts_decode.rewards.scorer import Scorer
from tts_decode.search.result import SearchResult
from tts_decode.search.run import SearchRun, require_at_least_one
from tts_decode.select import allocate, top_k

if TYPE_CHECKING:
    from tts_decode.branch import Branch


async def beam_search(
    root: Branch,
    *,
    n: int = 16,
    beam_width: int = 4,
    scorer: Scorer,
    max_steps: int = 40,
    temperature: float | None = None,
    agg_strategy: str = "last",
) -> SearchResult:
    """`n` beams take a step each; the best `n // beam_width` live on, with `beam_width` continuations each.

    Snell et al., "Scaling LLM Test-Time Compute Optimally", arXiv 2408.03314, section 5.2 and its figure 2.

    n             beams alive at a time.
    beam_width    continuations of each kept beam, a divisor of `n`: the paper's M and the meaning of Hugging
                  Face's search-and-learn. Elsewhere (its_hub, vLLM, SGLang, `generate(num_beams=)`) the word
                  means the number of beams kept.
    max_steps     steps before the search ends with what it has.
    temperature   of sampling; None takes the root's. Above 0, or all continuations of a beam are the same.
    agg_strategy  ranks beams by the "last", "min", "prod" or "mean" of their step scores.

    A finished beam leaves the search as a candidate and frees its place: the kept beams, which may then be
    fewer than `n // beam_width`, always share `n` continuations. The search ends when `n` beams are finished;
    unfinished ones win only if none is.
    """
    require_at_least_one("beam_width", beam_width)
    with SearchRun(
        "beam_search", root, n=n, max_steps=max_steps, temperature=temperature, agg_strategy=agg_strategy
    ) as run:
        if n % beam_width:
            raise ValueError(f"beam_width={beam_width} does not divide n={n}")
        live = run.fork(root, n)
        while (live := await run.advance(live, scorer)) and len(run.candidates) < n:
            kept = top_k(run.aggregated(live), n // beam_width)
            continuations = dict(zip(kept, allocate(n, [1.0] * len(kept)), strict=True))
            live = run.expand(live, [continuations.get(i, 0) for i in range(len(live))])
        return run.result()
