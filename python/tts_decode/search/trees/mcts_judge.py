"""MCTS-Judge: judges answers by a tree search over the perspectives to judge them from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ...core.checks import at_least
from ...core.running import gather
from ...select import extract_answer, uct
from ..answers import Extract, choose, distinct, eligible, likeliest, likelihood, sample
from ..decisions import DecideBy
from ..result import Candidate, SearchResult
from ..run import SearchRun
from ..strategy import strategy

_ANSWERED = "{question}\n\nProposed answer:\n{answer}\n\n"
PERSPECTIVES = (
    "Does it answer what was asked?",
    "Is every step of its reasoning valid?",
    "Are its facts and calculations right?",
    "Does it hold in special cases?",
    "Does its conclusion follow?",
)
ANALYSE = _ANSWERED + "{findings}Look at one thing only: {perspective} Explain briefly."
VERDICT = _ANSWERED + "{perspective}\n{analysis}\n\nSo, is it fine in this respect? Reply with Yes or No."
WORTH_ASKING = _ANSWERED + "{findings}Should this be examined next: {perspective} Reply with Yes or No."
WRITE_TESTS = "{question}\n\nName {number} tests that a correct answer must pass, one a line."
RUN_TEST = _ANSWERED + "Test: {test}\nGo through the answer line by line. Does it pass? Reply with Yes or No."


@dataclass(eq=False)
class _View:
    """A perspective taken after those above it. worth: P(yes) that it should be; verdict: its P(yes)."""

    perspective: str
    worth: float
    verdict: float | None = None
    visits: int = 0
    total: float = 0.0
    children: list[_View] = field(default_factory=list)


@strategy("n answers, each judged by a tree search over perspectives; the best judged one wins")
async def mcts_judge(
    run: SearchRun,
    *,
    n: int = 4,
    num_simulations: int = 8,
    max_depth: int = 3,
    num_tests: int = 3,
    exploration: float = 1.0,
    self_assessment: float = 1.0,
    aspects: Sequence[str] = PERSPECTIVES,
    decide_by: DecideBy = "max",
    extract: Extract = extract_answer,
) -> SearchResult:
    """Judges `n` independent answers, each by `num_simulations` trajectories through perspectives.

    Wang et al., "MCTS-Judge: Test-Time Scaling in LLM-as-a-Judge for Code Correctness Evaluation", arXiv
    2502.12468. A trajectory takes one perspective at a time. The next one is chosen by UCT, which summarises
    all trajectories so far, and by self-assessment, P(yes) that it is worth asking after what this trajectory
    found. The majority of its perspectives is its verdict. It is rewarded if the verdict agrees with a
    simulated execution: the model writes tests for the question, once, and traces the answer through each.

    Args:
        n: answers to judge.
        num_simulations: trajectories for each answer.
        max_depth: perspectives per trajectory.
        num_tests: tests of the simulated execution; 0: none, and every trajectory is rewarded.
        exploration: weight of the bonus in UCT.
        self_assessment: weight of P(yes) beside UCT; 0: UCT alone.
        aspects: questions about an answer for which Yes is favourable: the paper's perspectives.
        decide_by: "max": as described below; "last" is the same. "weighted" and "majority" as in `best_of_n`.
        extract: the answer in a text, or None to abstain.

    A candidate's `score` is the mean P(yes) of its trajectories, weighted by their rewards (evenly if none
    was rewarded); among equals the likelier answer wins. A node's verdict is computed once and kept, and a
    text sampled twice is judged once. Departures: the paper judges one given program as right or wrong; here
    the judge picks among sampled answers to any question; perspectives and prompts are ours, and so are the
    defaults.
    """
    at_least(1, n=n, num_simulations=num_simulations, max_depth=max_depth)
    at_least(0, num_tests=num_tests)
    run.decide_by(decide_by, extract)
    if not aspects:
        raise ValueError("aspects: got nothing, expected at least one question")
    aspects = list(dict.fromkeys(aspects))
    pool = distinct(eligible(await sample(run, n)))
    if run.over:
        return await run.result(likeliest(pool))
    tests: list[str] = []
    if num_tests:
        (text,) = await run.ask(WRITE_TESTS.format(question=run.question, number=num_tests))
        tests = [line.strip() for line in text.splitlines() if line.strip()][:num_tests]

    async def judge(answer: Candidate) -> float:
        about = {"question": run.question, "answer": answer.text}
        sources = [answer.node]

        async def open_views(path: list[_View]) -> list[_View]:
            """Returns the perspectives that are left after a path, each with its worth there."""
            left = [p for p in aspects if all(p != view.perspective for view in path)]
            findings = _findings(path)
            worth = await gather(
                run.p_yes(WORTH_ASKING.format(findings=findings, perspective=p, **about), sources=sources)
                for p in left
            )
            return [_View(p, w) for p, w in zip(left, worth, strict=True)]

        async def look(view: _View, path: list[_View]) -> float:
            prompt = ANALYSE.format(findings=_findings(path), perspective=view.perspective, **about)
            (analysis,) = await run.ask(prompt, sources=sources)
            prompt = VERDICT.format(perspective=view.perspective, analysis=analysis, **about)
            return await run.p_yes(prompt, sources=sources)

        passes = await gather(
            run.p_yes(RUN_TEST.format(test=test, **about), sources=sources) for test in tests
        )
        root = _View("", 1.0)
        weighted: list[tuple[float, float]] = []  # (mean verdict, reward) of each trajectory
        for _ in range(num_simulations):
            view, path = root, list[_View]()
            while len(path) < min(max_depth, len(aspects)):
                if not view.children:
                    view.children = await open_views(path)
                values = [child.total / max(child.visits, 1) for child in view.children]
                visits = [child.visits for child in view.children]
                bounds = uct(values, visits, view.visits, exploration)
                worths = [self_assessment * child.worth for child in view.children]
                best = max(range(len(bounds)), key=lambda i: bounds[i] + worths[i])
                view = view.children[best]
                if view.verdict is None:
                    view.verdict = await look(view, path)
                path.append(view)
            verdicts = [view.verdict or 0.0 for view in path]
            agrees = not passes or _mostly_yes(verdicts) == _mostly_yes(passes)
            for view in (root, *path):
                view.visits += 1
                view.total += agrees
            weighted.append((sum(verdicts) / len(verdicts), float(agrees)))
            if run.over:
                break
        total = sum(reward for _, reward in weighted)
        if not total:
            return sum(verdict for verdict, _ in weighted) / len(weighted)
        return sum(verdict * reward for verdict, reward in weighted) / total

    scores = await gather(judge(answer) for answer in pool)
    best = max(range(len(pool)), key=lambda i: (scores[i], likelihood(pool[i])))
    chosen = pool[best] if decide_by in ("max", "last") else None
    return await choose(run, chosen, {c.text: score for c, score in zip(pool, scores, strict=True)})


def _mostly_yes(probabilities: Sequence[float]) -> bool:
    return sum(p >= 0.5 for p in probabilities) * 2 >= len(probabilities)


def _findings(path: Sequence[_View]) -> str:
    lines = [f"{view.perspective} {'Yes' if (view.verdict or 0.0) >= 0.5 else 'No'}\n" for view in path]
    return "".join(lines)
