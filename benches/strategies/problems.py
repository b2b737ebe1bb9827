"""Our own problems, in addition to the default ones: programs with tests, and stories with a context."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from tts_decode.sandbox import python_tool
from tts_decode.search.refinement.s_star import reading
from tts_decode.search.refinement.t1_verify import code_in
from tts_decode.tasks import Task, default_tasks, final_number

Tests = tuple[tuple[str, str], ...]
"""(standard input, expected output) pairs."""

PROMPT = """A Python program that reads a whole number and prints its square:

```python
n = int(input())
print(n * n)
```

Write a Python program that {what}. Answer with the whole program, in one block of code."""


@dataclass(frozen=True)
class ProgramProblem:
    """A program to write. public: tests that a strategy may see. hidden: those that judge."""

    name: str
    what: str
    public: Tests
    hidden: Tests


PROGRAMS = (
    ProgramProblem(
        "double",
        "reads a whole number and prints its double",
        (("4", "8"), ("-3", "-6")),
        (("0", "0"), ("25", "50"), ("-11", "-22")),
    ),
    ProgramProblem(
        "next",
        "reads a whole number and prints the next larger one",
        (("4", "5"), ("-3", "-2")),
        (("0", "1"), ("-1", "0"), ("99", "100")),
    ),
    ProgramProblem(
        "cube",
        "reads a whole number and prints its cube",
        (("2", "8"), ("-3", "-27")),
        (("0", "0"), ("5", "125"), ("-1", "-1")),
    ),
    ProgramProblem(
        "absolute",
        "reads a whole number and prints its absolute value",
        (("4", "4"), ("-3", "3")),
        (("0", "0"), ("-25", "25"), ("7", "7")),
    ),
    ProgramProblem(
        "even",
        "reads a whole number and prints even if it is even and odd if it is odd",
        (("4", "even"), ("-3", "odd")),
        (("0", "even"), ("1", "odd"), ("-2", "even")),
    ),
    ProgramProblem(
        "length",
        "reads a line of text and prints how many characters it has",
        (("tree", "4"), ("a b", "3")),
        (("x", "1"), ("a  b", "4"), ("branch and leaf", "15")),
    ),
)

# (context, question, answer). The question is the last sentence, so that a strategy can take it off.
STORIES = (
    ("Ann has 3 apples. Ben has 4 apples more than Ann.", "How many apples does Ben have?", 7),
    ("A box holds 5 pens. A shop has 4 full boxes.", "How many pens does the shop have in boxes?", 20),
    ("A bus has 9 passengers. At a stop 4 leave it and 2 enter.", "How many are on the bus then?", 7),
    ("Tom is 6 years old. His sister is twice as old.", "How old is his sister?", 12),
    ("A rope is 12 metres long. It is cut into 3 equal parts.", "How many metres long is a part?", 4),
    ("Eva reads 8 pages a day. Her book has 40 pages.", "In how many days does she read the book?", 5),
)


def program_tests(name: str) -> tuple[Tests, Tests]:
    """Public and hidden tests of the problem called so."""
    found = next(problem for problem in PROGRAMS if problem.name == name)
    return found.public, found.hidden


def passed(text: str, tests: Tests) -> list[bool]:
    """Which tests the program in a text passes. It runs in the sandbox: SandboxError where there is none."""
    tool, code = python_tool(), code_in(text)
    return [tool(reading(code, given)).strip() == expected for given, expected in tests]


def problems(kind: str, limit: int) -> list[Task]:
    """The first `limit` problems of a kind: "default", "programs" or "stories"."""
    if kind == "programs":
        return [_program(problem) for problem in PROGRAMS[:limit]]
    if kind == "stories":
        return [_story(f"story/{i}", *story) for i, story in enumerate(STORIES[:limit])]
    return default_tasks(limit)


def _program(problem: ProgramProblem) -> Task:
    @lru_cache(maxsize=1024)
    def verify(text: str) -> float:
        return float(all(passed(text, problem.hidden)))

    return Task(problem.name, PROMPT.format(what=problem.what), None, verify, waits=True)


def _story(name: str, context: str, question: str, answer: int) -> Task:
    def verify(text: str) -> float:
        return float(final_number(text) == str(answer))

    return Task(name, f"{context} {question}", str(answer), verify)
