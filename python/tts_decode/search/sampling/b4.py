"""B4: answers and tests, both only plausible, judge each other."""

from __future__ import annotations

from collections.abc import Sequence

from ...core.checks import at_least
from ...core.running import gather
from ...select import b4_scores
from ..answers import choose, distinct, eligible, likeliest, likelihood, sample
from ..outside import Tests, tests_passed
from ..result import Candidate, SearchResult
from ..run import SearchRun
from ..strategy import strategy

WRITE = """{question}

Do not answer yet. Write one question, to be answered by yes or no, whose answer is yes for every right \
response to the above and no for a typical wrong one. Write that question only."""

CHECK = """{question}

A proposed response:
{answer}

{check} Reply with Yes or No only."""


@strategy("answers and tests, the most plausible consensus wins")
async def b4(
    run: SearchRun,
    *,
    n: int = 16,
    num_tests: int = 16,
    run_tests: Tests | None = None,
    beta_0: float = 1e5,
    alpha_xy: float = 1e3,
    write_prompt: str = WRITE,
    check_prompt: str = CHECK,
) -> SearchResult:
    """Groups `n` samples by the tests they pass; the group that is most probably right wins.

    Chen et al., "B4: Towards Optimal Assessment of Plausible Code Solutions with Plausible Tests", arXiv
    2409.08692 (its code: ZJU-CTAG/B4). The rule is `select.b4_scores`.

    Args:
        n: number of samples.
        num_tests: tests that the model writes if `run_tests` is None.
        run_tests: takes a sample's text and says which tests it passes, the same tests for each text. An
            async function is awaited; another one runs in a thread. None: the model writes yes/no questions
            about a response and answers them itself.
        beta_0, alpha_xy: parameters of the priors.
        write_prompt: with the field {question}.
        check_prompt: with the fields {question}, {answer} and {check}.

    Candidates that pass exactly the same tests form a consensus; the likeliest sample of the best consensus
    wins. Scores are log-posteriors, up to a constant.

    Departures. The paper tests code; here the model asks questions, so that any answer can be tested. An
    answer passes a question if P(Yes) > P(No). A text sampled twice is tested once and counts twice.
    """
    at_least(1, n=n, num_tests=num_tests)
    b4_scores([], beta_0, alpha_xy)
    pool = eligible(await sample(run, n))
    texts = distinct(pool)
    if len(texts) == 1 or run.over:
        return await run.result(likeliest(pool))
    if run_tests is not None:
        rows = await gather(tests_passed(run, run_tests, c.text) for c in texts)
        if len({len(row) for row in rows}) > 1:
            raise ValueError(
                f"run_tests: got {sorted({len(row) for row in rows})} results, expected one for each of the "
                "same tests, whatever the text"
            )
    else:
        written = await run.ask(write_prompt.format(question=run.question), num_tests)
        checks = list(dict.fromkeys(text.strip() for text in written if text.strip()))
        rows = await gather(_passes(run, c, checks, check_prompt) for c in texts)
    passed = {c.text: row for c, row in zip(texts, rows, strict=True)}
    scores = b4_scores([passed[c.text] for c in pool], beta_0, alpha_xy)
    chosen = max(range(len(pool)), key=lambda i: (scores[i], likelihood(pool[i])))
    return await choose(run, pool[chosen], {c.text: score for c, score in zip(pool, scores, strict=True)})


async def _passes(run: SearchRun, answer: Candidate, checks: Sequence[str], prompt: str) -> list[bool]:
    opinions = await gather(
        run.p_yes(
            prompt.format(question=run.question, answer=answer.text, check=check), sources=(answer.node,)
        )
        for check in checks
    )
    return [p > 0.5 for p in opinions]
