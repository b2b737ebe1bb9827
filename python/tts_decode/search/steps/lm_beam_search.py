"""Token-level beam search for the likeliest continuation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch

from tts_kernels.checks import number

from ...core.checks import at_least
from ...core.running import gather
from ..result import Candidate, SearchResult
from ..run import SearchRun
from ..strategy import strategy

if TYPE_CHECKING:
    from ...core.interfaces import Branch


@strategy("the likeliest text by token-level beam search, no scorer")
async def lm_beam_search(
    run: SearchRun,
    *,
    n: int = 4,
    length_penalty: float = 1.0,
    early_stopping: bool | Literal["never"] = False,
) -> SearchResult:
    """Finds the `n` likeliest continuations with a beam of `n`: no sampling, no scorer.

    Finds the sequences and scores of transformers' `generate(num_beams=n, do_sample=False)`: a sequence's
    score is its log-probability over length ** length_penalty, where length is the number of generated
    tokens, including the closing end-of-sequence token. Each step considers the best 2n extensions, and n
    more for each further end-of-sequence token: those that end among the first n are finished, and the first
    n that do not end continue.

    Args:
        n: beams, and sequences returned (`candidates`, best first).
        length_penalty: above 0 favours long sequences, below 0 short ones.
        early_stopping: when to stop once n sequences are finished. True: at once. False: when the best
            running beam, at its current length, is no better than the worst finished one. "never": when it
            could not become better at any length up to the limit, for a positive length_penalty.

    The root's `max_tokens` limits the length, and a sequence accepted by its `stop_when` is finished like one
    with an end token. Its other sampling parameters do not change log-probabilities, and a `constraint`,
    which would have to, is refused. Beam tokens count against the root's budget. A step is one forward of all
    beams, and a beam that drops out frees its pages before the next one.

    Departures. None: a test compares the two.
    """
    number("length_penalty", length_penalty)
    if early_stopping not in (True, False, "never"):
        raise ValueError(f"early_stopping: got {early_stopping!r}, expected True, False or 'never'")
    at_least(1, n=n)
    root = run.root
    run.refuse_constraint("lm_beam_search", "ranks the model's own log-probabilities")
    stop_when = root.sampling.stop_when
    live = run.fork(root, 1)
    limit = root.prompt_length + root.sampling.max_tokens - root.length
    if root.decoder.max_positions is not None:
        limit = min(limit, root.decoder.max_positions - root.length)
    cut = "max_tokens" if limit + root.length - root.prompt_length == root.sampling.max_tokens else "length"
    if limit < 1:
        return await run.result()
    eos = frozenset(root.decoder.eos_token_ids)
    totals = torch.zeros(1)  # float32 [beams], log-probability of what each generated
    finished: list[tuple[float, Candidate]] = []  # score and sequence of the best n, best first

    for length in range(1, limit + 1):
        logprobs = torch.stack(await gather(run.all_logprobs(branch) for branch in live))  # [beams, vocab]
        run.note_memory()
        flat = (totals[:, None] + logprobs).flatten()
        values, indices = flat.topk(min(max(2, 1 + len(eos)) * n, len(flat)))
        running: list[tuple[int, int, float]] = []  # (beam, token, total)
        for rank, (total, index) in enumerate(zip(values.tolist(), indices.tolist(), strict=True)):
            beam, token = divmod(index, logprobs.shape[1])
            ended = "eos" if token in eos else None
            if ended is None and stop_when is not None:
                ended = "stop_when" if stop_when(live[beam].text + root.text_of([token])) else None
            if ended is not None or length == limit:
                if rank < n:
                    score, reason = total / length**length_penalty, ended or cut
                    logprob = logprobs[beam, token].item()
                    node = run.add_leaf(live[beam], token, logprob, score)
                    finished.append((score, _candidate(live[beam], token, logprob, score, reason, node)))
            elif len(running) < n:
                running.append((beam, token, total))
        finished = sorted(finished, key=lambda pair: -pair[0])[:n]

        over = not running
        if running and len(finished) == n:
            horizon = limit if early_stopping == "never" and length_penalty > 0 else length
            bound = running[0][2] / horizon**length_penalty
            over = early_stopping is True or bound <= finished[-1][0]
        if over:
            run.prune(live)
            break
        if not run.charge(len(running)):
            run.stopped = f"the budget does not suffice for a token of each of {len(running)} beams"
            for branch, total in zip(live, totals.tolist(), strict=True):
                branch.scores.append(total / max(length - 1, 1) ** length_penalty)
            break
        totals = torch.tensor([total for _, _, total in running])
        live = await _extend(run, live, [(beam, token) for beam, token, _ in running])

    run.candidates += [candidate for _, candidate in finished]
    return await run.result()


async def _extend(run: SearchRun, live: list[Branch], chosen: list[tuple[int, int]]) -> list[Branch]:
    """Returns a fork of live[beam] with `token` appended for each (beam, token).

    The old beams are released first.
    """
    children = []
    for beam, _ in chosen:
        children += run.fork(live[beam], 1)
    run.prune(live)
    await gather(run.append(child, token) for child, (_, token) in zip(children, chosen, strict=True))
    return children


def _candidate(branch: Branch, token: int, logprob: float, score: float, reason: str, node: int) -> Candidate:
    """Returns the branch's text with `token` as its last token, which no longer needs KV."""
    return Candidate(
        text=branch.text + branch.text_of([token]),
        tokens=(*branch.tokens[branch.prompt_length :], token),
        logprob=branch.cum_logprob + logprob,
        score=score,
        scores=(),
        finish_reason=reason,
        node=node,
    )
