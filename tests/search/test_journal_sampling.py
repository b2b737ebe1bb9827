"""Journals of searches under penalties, biases, a constraint and top log-probabilities."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from primitives import PROMPT, make
from transformers import PreTrainedModel
from tts_decode import Regex, SamplingParams, Step
from tts_decode.errors import JournalError
from tts_decode.records.strict_json import seal
from tts_decode.search import STRATEGIES, Journal, SearchResult, SearchRun, strategy

pytestmark = pytest.mark.usefixtures("one_thread")

SAMPLING = SamplingParams(
    seed=4,
    max_step_tokens=4,
    max_tokens=12,
    frequency_penalty=0.5,
    presence_penalty=0.5,
    logit_bias={97: -3.0},
    top_logprobs=2,
    self_certainty=True,
)


class Any4:
    """A constraint in Python: the tokens 97 to 100."""

    def start(self, tokenizer: Any) -> Any4:
        return self

    accepts = True

    def mask(self) -> npt.NDArray[np.bool_]:
        return np.arange(101) > 96

    def advance(self, token: int) -> bool:
        return 96 < token < 101

    def fork(self) -> Any4:
        return self

    def rollback(self, count: int) -> None:
        pass


def searched(model: PreTrainedModel, path: Path, sampling: SamplingParams) -> tuple[list[Step], int]:
    """The steps of a search that keeps a journal, and how many tokens were drawn for them."""
    steps: list[Step] = []
    decoder = make(model)

    async def three_rounds(run: SearchRun) -> SearchResult:
        branches = run.fork(run.root, 2)
        for _ in range(3):
            await run.step(branches)
        for branch in branches:
            steps.extend(branch.steps)
            run.end(branch)
        return await run.result()

    made = strategy("for this test")(three_rounds)
    del STRATEGIES[made.name]

    async def search() -> None:
        root = await decoder.root(PROMPT, sampling)
        await made(SearchRun(root, journal=Journal(path, resume=True)))

    decoder.run(search())
    return steps, decoder.stats().generated_tokens


@pytest.mark.parametrize("kept", [1, 2, 4, 6])
@pytest.mark.parametrize("constraint", ["none", "regex", "python"])
def test_a_resumed_search_comes_to_the_same(
    model: PreTrainedModel, tmp_path: Path, kept: int, constraint: str
) -> None:
    held: Any = {"none": None, "regex": Regex("[a-d]+"), "python": Any4()}[constraint]
    if constraint == "regex":
        pytest.importorskip("llguidance")
    sampling = replace(SAMPLING, constraint=held)
    path = tmp_path / "search.jsonl"
    expected, drawn = searched(model, path, sampling)
    assert all(len(step.top_logprobs) == len(step.tokens) > 0 for step in expected)
    assert all(len(step.self_certainties) == len(step.tokens) for step in expected)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[: 1 + kept]))
    steps, again = searched(model, path, sampling)
    assert steps == expected
    assert again < drawn


def test_a_header_without_the_newer_parameters_has_them_at_their_defaults(
    model: PreTrainedModel, tmp_path: Path
) -> None:
    """As it was written before they were there; and a search under a penalty is another one."""
    path = tmp_path / "search.jsonl"
    plain = SamplingParams(seed=4, max_step_tokens=4, max_tokens=12)
    expected, _ = searched(model, path, plain)
    records = [json.loads(line) for line in path.read_text().splitlines()]
    for name in (
        "frequency_penalty",
        "presence_penalty",
        "logit_bias",
        "top_logprobs",
        "self_certainty",
        "constraint",
    ):
        del records[0]["sampling"][name]
    lines, before = [], 0
    for record in records:
        del record["crc32"]
        line, before = seal(record, before)
        lines.append(line)
    path.write_text("\n".join([*lines, ""]))
    assert searched(model, path, plain) == (expected, 0)
    with pytest.raises(JournalError, match="its sampling is"):
        searched(model, path, SamplingParams(seed=4, max_step_tokens=4, max_tokens=12, presence_penalty=1))
