"""Makes the parts that setups name: second model, verifier, tool, retriever, tests."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from tts_decode import SamplingParams, TreeDecoder, gather
from tts_decode.model.loading import load_model
from tts_decode.rewards import Scorer, mean_probability, verifier
from tts_decode.sandbox import python_tool
from tts_decode.search import ReferenceLibrary, SolvedProblem, attention_trigger, with_templates
from tts_decode.select import lexical_similarity
from tts_decode.tasks import Task

from benches.quantised.gemma import gemma_file
from benches.strategies.problems import passed, program_tests
from benches.strategies.setups import Part, Setup
from benches.strategies.verifier import trained_verifier

# Gemma's file is of the base model, without a chat template.
BASE_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message.role == 'user' %}"
    "Question: {{ message.content }}\nAnswer:{% else %} {{ message.content }}\n\n{% endif %}{% endfor %}"
)
CORPUS = (
    "The sum of two numbers is what they make when they are added: 5 + 3 = 8.",
    "The difference of two numbers is the first less the second: 9 - 4 = 5, and 4 - 9 = -5.",
    "To multiply two numbers is to add the first as often as the second says: 7 * 3 = 7 + 7 + 7 = 21.",
    "The greatest common divisor (GCD) of two numbers is the largest that divides both: of 9 and 6 it is 3.",
    "Where the smaller number divides the larger, it is their greatest common divisor: of 4 and 12 it is 4.",
    "Two numbers without a common divisor but 1 have the greatest common divisor 1: 4 and 9 do.",
    "To take away a negative number is to add the positive one: 3 - -5 = 3 + 5 = 8.",
    "To add a negative number is to take away the positive one: 3 + -5 = 3 - 5 = -2.",
    "A negative number times a positive one is negative: -2 * 6 = -12. Two negative ones: -2 * -6 = 12.",
)
SOLVED = (
    SolvedProblem(
        "State the final answer to the following arithmetic problem: 5 + 8 =",
        ("5 + 8 = 13.", "The answer is 13."),
    ),
    SolvedProblem(
        "Solve the following multiplication: 7 * 5.", ("7 * 5 = 7 + 7 + 7 + 7 + 7 = 35.", "The answer is 35.")
    ),
    SolvedProblem(
        "Find the Greatest Common Divisor (GCD) of these numbers: 10, 4.",
        (
            "10 is divided by 1, 2, 5 and 10; 4 by 1, 2 and 4.",
            "The largest number in both is 2.",
            "The answer is 2.",
        ),
    ),
    SolvedProblem("Calculate -5 - -9.", ("-5 - -9 = -5 + 9 = 4.", "The answer is 4.")),
)
WRITE_TESTS = """{question}

Do not write the program. Write a test of it, a line with an input and a line with what the program has to \
print. A test of the first program is:
Input: 3
Output: 9"""
_TEST = re.compile(r"\s*(.*?)\s*\n\s*Output:\s*(.*)")
_MLAG = 0.008  # of the trigger: about a fifth of the tokens that it is asked about reach it


def retrieve(query: str) -> str:
    """The text of the corpus that shares most words with a query; "" if none shares any."""
    likeness = [lexical_similarity(query, text) for text in CORPUS]
    return CORPUS[likeness.index(max(likeness))] if max(likeness) > 0 else ""


class Kit:
    """decoder: of the default model, on which searches run. folder: where the second model's file is, or is
    put."""

    def __init__(self, decoder: TreeDecoder, name: str, sampling: SamplingParams, folder: Path) -> None:
        self._decoder, self._name, self._sampling, self._folder = decoder, name, sampling, folder
        self._library: ReferenceLibrary | None = None

    async def options(self, setup: Setup, task: Task) -> dict[str, Any]:
        """Of a search on a task, with what the setup names put in place."""
        made = {name: await self._made(value, task) for name, value in setup.options.items()}
        return made if setup.scorer is None else made | {"scorer": self._scorer(setup.scorer, task)}

    def _scorer(self, name: str, task: Task) -> Scorer:
        if name == "trained verifier":
            return self._verifier
        if name == "public tests":
            return verifier(_share_of_public_tests(task), threaded=True)
        if name == "own check":
            assert task.verify is not None
            return verifier(task.verify, threaded=task.waits)
        return mean_probability()

    async def _made(self, value: Any, task: Task) -> Any:
        if isinstance(value, tuple):
            return tuple([await self._made(item, task) for item in value])
        if not isinstance(value, Part):
            return value
        if value is Part.LIBRARY:
            if self._library is None:
                templated = await with_templates(self._decoder, SOLVED, self._sampling)
                self._library = ReferenceLibrary(templated)
            return self._library
        if value is Part.WRITTEN_TESTS:
            return await self._written_tests(task)
        of_task: dict[Part, Callable[[], Any]] = {
            Part.PUBLIC_TESTS: lambda: program_tests(task.name)[0],
            Part.FEEDBACK: lambda: _feedback(task),
            Part.FIRST: lambda: self._decoder,
            Part.SECOND: lambda: self._second,
            Part.TOOL: python_tool,
            Part.RETRIEVER: lambda: retrieve,
            Part.TRIGGER: lambda: self._trigger,
            Part.EXAMPLES: lambda: [(solved.question, "\n".join(solved.steps)) for solved in SOLVED],
            Part.VERIFIER: lambda: self._verifier,
        }
        return of_task[value]()

    @cached_property
    def _second(self) -> TreeDecoder:
        self._folder.mkdir(parents=True, exist_ok=True)
        dtype = self._decoder.model.dtype
        model, tokenizer = load_model(gemma_file(self._folder), dtype, weights="file")
        tokenizer.chat_template = BASE_TEMPLATE
        return TreeDecoder(model, tokenizer)

    @cached_property
    def _verifier(self) -> Any:
        return trained_verifier(TreeDecoder(self._decoder.model, self._decoder.tokenizer))

    @cached_property
    def _trigger(self) -> Any:
        model, _ = load_model(self._name, "float32")
        model.set_attn_implementation("eager")
        return attention_trigger(model, _MLAG)

    async def _written_tests(self, task: Task, count: int = 8) -> Callable[[str], Sequence[bool]]:
        """What runs a program on the tests that the model writes for a task."""
        asked = [{"role": "user", "content": WRITE_TESTS.format(question=task.prompt)}]
        root = await self._decoder.root(asked, replace(self._sampling, stop=(), max_tokens=24))
        await root.extend("Input:")
        forks = root.fork(count)
        await gather(fork.step(max_step_tokens=24) for fork in forks)
        written = [_TEST.match(fork.text.removeprefix("Input:")) for fork in forks]
        for branch in (root, *forks):
            branch.release()
        tests = tuple(dict.fromkeys((found[1], found[2].strip()) for found in written if found))
        return lambda text: passed(text, tests)


def _share_of_public_tests(task: Task) -> Callable[[str], float]:
    public, _ = program_tests(task.name)
    return lambda text: sum(passed(text, public)) / len(public)


def _feedback(task: Task) -> Callable[[str], str]:
    """What the public tests say of an answer, for a model to read."""
    public, _ = program_tests(task.name)

    def told(text: str) -> str:
        verdicts = zip(public, passed(text, public), strict=True)
        return "\n".join(
            f"Input {i}, expected {o}: {'passed' if ok else 'failed'}" for (i, o), ok in verdicts
        )

    return told
