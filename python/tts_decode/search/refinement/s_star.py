"""S*: programs are debugged on public tests, then compared in pairs on inputs that distinguish them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from ...core.checks import at_least
from ...core.running import gather
from ...errors import PromptTooLongError
from ...select import last_choice
from ..answers import choose, eligible, finish
from ..outside import Tool, output_of
from ..result import Candidate, SearchResult
from ..run import SearchRun
from ..strategy import strategy
from .t1_verify import code_in
from .thread import Thread

if TYPE_CHECKING:
    from ...core.interfaces import Branch

DEBUG = """{question}

Your program:
{answer}

What it printed:
{feedback}

Say why it fails, then write the whole program again, corrected."""
INPUTS = """{question}

Do not solve this. Write {count} inputs on which a wrong program for it may fail, edge cases among them. Put \
each into a block of its own between ``` and ```, and write no outputs."""
DISTINGUISH = """{question}

Program A:
{first}

Program B:
{second}

Write {count} inputs on which one of these programs may be right and the other wrong. Put each into a block \
of its own between ``` and ```, and write no outputs."""
JUDGE = """{question}

Program A:
{first}

Program B:
{second}

What they printed:
{outputs}

Which program is right? Reply with A, B or Tie only."""
_BLOCK = re.compile(r"```[^\n]*\n(.*?)\n?```", re.DOTALL)


class Program(NamedTuple):
    answer: Candidate
    code: str
    passed: int  # number of public tests


@strategy("programs debugged on public tests, then compared in pairs on inputs that tell them apart")
async def s_star(
    run: SearchRun,
    *,
    n: int = 16,
    max_rounds: int = 2,
    num_tests: int = 4,
    tool: Tool | None = None,
    public_tests: Sequence[tuple[str, str]] = (),
    debug_prompt: str = DEBUG,
    inputs_prompt: str = INPUTS,
    distinguish_prompt: str = DISTINGUISH,
    judge_prompt: str = JUDGE,
) -> SearchResult:
    """Debugs `n` programs on public tests, then compares clusters of equal output in pairs.

    Li, Cao et al., "S*: Test Time Scaling for Code Generation", arXiv 2502.14382, section 3 (its code:
    NovaSky-AI/SkyThought, skythought/test-time-scaling). Each program is corrected until it passes the public
    tests. Programs with the same output form a cluster, clusters meet in pairs, and a program of the cluster
    with most wins is the answer.

    Args:
        n: concurrent programs.
        max_rounds: maximum number of corrections of each.
        num_tests: inputs asked for, for the clusters and for each pair.
        tool: runs Python and returns what it printed; if it raises an exception, the exception's text counts.
            An async function is awaited; another one runs in a thread. None: nothing is run, each different
            program is a cluster, and the model judges the programs alone.
        public_tests: (input, expected output) pairs: a program's standard input, and the output it must
            print, ignoring spaces at the ends of lines. Empty: programs are not corrected.
        debug_prompt: with the fields {question}, {answer} and {feedback}.
        inputs_prompt: with the fields {question} and {count}.
        distinguish_prompt: with the fields {question}, {first}, {second} and {count}.
        judge_prompt: with the fields {question}, {first}, {second} and {outputs}.

    Only programs that pass all public tests are compared; if none does, the first of those that pass most
    wins. A match is judged in both orders: a program wins if both verdicts name it, two ties are half a win
    for both, and anything else counts for neither. The program that represents a cluster, in a match and at
    the end, is drawn at random. A candidate's score is the wins of its cluster, or, if no program passes all
    public tests, the share that it passes; programs that were corrected have none.

    Departures: a correction sees only its program and that program's output; programs read standard input;
    outputs are compared as text; two programs of a pair meet on the inputs made for the pair alone. The code
    lets all programs of two clusters meet, once for each input, and drops clusters of errors. Wording.
    """
    at_least(1, n=n, num_tests=num_tests)
    at_least(0, max_rounds=max_rounds)

    async def outputs(code: str, inputs: Sequence[str]) -> list[str]:
        if tool is None:
            return []
        return await gather(output_of(run, tool, reading(code, text)) for text in inputs)

    async def tested(answer: Candidate) -> tuple[Program, str]:
        """Returns the program, and its results on the public tests."""
        code = code_in(answer.text).strip()
        made = await outputs(code, [text for text, _ in public_tests])
        passed, told = 0, []
        for (given, expected), output in zip(public_tests, made, strict=False):
            passed += _same(output, expected)
            verdict = "as expected" if _same(output, expected) else f"expected:\n{expected}"
            told.append(f"input:\n{given}\noutput:\n{output}\n{verdict}")
        return Program(answer, code, passed), "\n\n".join(told)

    async def debugged(answer: Candidate) -> Program:
        thread = Thread(run)
        program, feedback = await tested(answer)
        with suppress(PromptTooLongError):  # a program that cannot be shown stays as it is
            for _ in range(max_rounds if tool is not None else 0):
                if program.passed == len(public_tests) or run.over:
                    break
                prompt = debug_prompt.format(
                    question=run.question, answer=program.answer.text, feedback=feedback
                )
                sources = (program.answer.node,)
                (answer,) = await thread.answers(prompt, sources=sources)
                program, feedback = await tested(answer)
        thread.close()
        return program

    async def inputs_of(prompt: str, sources: Sequence[int]) -> list[str]:
        (reply,) = await run.ask(prompt, sources=sources)
        return list(dict.fromkeys(_BLOCK.findall(reply)))[:num_tests]

    async def match(a: Program, b: Program) -> tuple[float, float]:
        fields = {"question": run.question, "count": num_tests}
        sources = (a.answer.node, b.answer.node)
        prompt = distinguish_prompt.format(first=a.code, second=b.code, **fields)
        inputs = [] if tool is None else await inputs_of(prompt, sources)
        printed = await gather(outputs(program.code, inputs) for program in (a, b))
        verdicts = []
        for x, y in ((0, 1), (1, 0)):
            shown = "\n\n".join(
                f"input:\n{text}\nA:\n{printed[x][i]}\nB:\n{printed[y][i]}" for i, text in enumerate(inputs)
            )
            codes = {"first": (a, b)[x].code, "second": (a, b)[y].code, "outputs": shown}
            (reply,) = await run.ask(judge_prompt.format(question=run.question, **codes), sources=sources)
            verdicts.append(last_choice(reply, ("A", "B", "Tie")) or "")
        return _POINTS.get((verdicts[0], verdicts[1]), (0.0, 0.0))

    async def line(branch: Branch) -> Program:
        return await debugged(await finish(run, branch))

    made = await gather(line(branch) for branch in run.fork(run.root, n))
    if run.over:
        return await run.result()
    whole = eligible([program.answer for program in made])
    programs = [program for program in made if program.answer in whole]
    passing = [p for p in programs if p.passed == len(public_tests) or tool is None]
    if not passing:
        best = max(programs, key=lambda p: p.passed)
        return await choose(run, best.answer, {p.answer.text: p.passed / len(public_tests) for p in programs})
    inputs = []
    if tool is not None and len(passing) > 1:
        inputs = await inputs_of(inputs_prompt.format(question=run.question, count=num_tests), ())
    clusters: dict[object, list[Program]] = {}
    for program in passing:
        key = tuple(await outputs(program.code, inputs)) if tool is not None else program.code
        clusters.setdefault(key, []).append(program)
    groups = list(clusters.values())
    wins = [0.0] * len(groups)
    for i in range(len(groups)):
        for j in range(i + 1, len(groups)):
            if run.over:
                break
            won = await match(run.rng.choice(groups[i]), run.rng.choice(groups[j]))
            wins[i], wins[j] = wins[i] + won[0], wins[j] + won[1]
    best = run.rng.choice(groups[wins.index(max(wins))])
    scores = {p.answer.text: won for group, won in zip(groups, wins, strict=True) for p in group}
    return await choose(run, best.answer, scores)


_POINTS = {("A", "B"): (1.0, 0.0), ("B", "A"): (0.0, 1.0), ("Tie", "Tie"): (0.5, 0.5)}


def reading(code: str, text: str) -> str:
    """Returns a Python program that runs `code` with `text` as its standard input."""
    run = f"exec(compile({code!r}, 'program', 'exec'), {{'__name__': '__main__'}})"
    return f"import io, sys\nsys.stdin = io.StringIO({text!r})\n{run}\n"


def _same(output: str, expected: str) -> bool:
    """Whether two outputs are equal, ignoring spaces at the ends of lines and empty lines at the end."""
    printed, wanted = ([line.rstrip() for line in t.rstrip().split("\n")] for t in (output, expected))
    return printed == wanted
