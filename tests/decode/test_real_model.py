"""The default model: its answers are those of transformers, and its searches leave nothing behind."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from tiny_models import greedy
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from tts_decode import Branch, SamplingParams, TreeDecoder, gather
from tts_decode.rewards import self_evaluation
from tts_decode.search import STRATEGIES, lm_beam_search
from tts_decode.tasks import default_tasks

pytestmark = pytest.mark.model
Loaded = tuple[PreTrainedModel, PreTrainedTokenizerBase]


@pytest.fixture
def decoder(real_model: Loaded) -> Iterator[TreeDecoder]:
    decoder = TreeDecoder(*real_model, kv_bytes=64 << 20)
    yield decoder
    stats = decoder.stats()
    assert (stats.branches, stats.resident_bytes) == (0, 0)


def chat(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def encoded(tokenizer: PreTrainedTokenizerBase, text: str) -> torch.Tensor:
    ids = tokenizer.apply_chat_template(chat(text), add_generation_prompt=True, return_dict=True)["input_ids"]
    return torch.tensor([ids])


QUESTIONS = [
    "What is 17 + 25? Think step by step.",
    "Name three prime numbers and say why they are prime.",
    "Write two sentences about the sea.",
    "Which is heavier, a kilogram of iron or of feathers? Why?",
]


def test_greedy_equals_generate_for_several_chats_in_one_batch(real_model: Loaded) -> None:
    """Each prompt is prefilled in chunks beside decoding branches, and two forks of each decode with it."""
    model, tokenizer = real_model
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


def test_stop_strings_end_steps_after_a_line(real_model: Loaded) -> None:
    model, tokenizer = real_model
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


def test_likeliest_text_is_that_of_generate(real_model: Loaded, decoder: TreeDecoder) -> None:
    model, tokenizer = real_model
    prompt = "What is 3 + 4?"

    async def search() -> tuple[int, ...]:
        root = await decoder.root(chat(prompt), SamplingParams(max_tokens=12))
        result = await lm_beam_search(root, n=4)
        root.release()
        return result.best.tokens

    ids = encoded(tokenizer, prompt)
    expected = model.generate(ids, max_new_tokens=12, do_sample=False, num_beams=4)[0, ids.shape[1] :]
    assert list(decoder.run(search())) == expected.tolist()


@pytest.mark.parametrize("name", ["best_of_n", "beam_search", "lm_beam_search", "rebase", "ets"])
def test_strategies_run_and_release(decoder: TreeDecoder, name: str) -> None:
    strategy = STRATEGIES[name]
    options = {"scorer": self_evaluation()} if strategy.needs_scorer else {}

    async def search() -> str:
        sampling = SamplingParams(temperature=0.8, stop=("\n",), max_tokens=16, max_step_tokens=8)
        root = await decoder.root(chat(default_tasks(1)[0].prompt), sampling)
        result = await strategy(root, n=4, **options)
        root.release()
        return result.answer

    assert decoder.run(search()).strip()
